"""``swap()``: torch's names mean our classes, every class of torch's stays what it was."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import adamw, lr_scheduler, swa_utils

import fused_sched
from fused_sched import stock
from fused_sched.swap import OPTIMIZERS, SCHEDULERS
from tests.cases import OF_TORCH
from tests.cases import SCHEDULERS as SCHEDULER_CASES
from tests.training import check, named, set_grads, three
from tests.twins import Side, assert_same, without_params

STEPS = 30
PACKAGE = Path(fused_sched.__file__).parent


@pytest.fixture
def swapped():
    with fused_sched.swap() as swap:
        yield swap


@pytest.fixture(params=["native", "eager"])
def cpu_engine(request):
    with fused_sched.use_engine(request.param):
        yield request.param


def one_param(**group: Any) -> list[dict[str, Any]]:
    return [{"params": [Parameter(torch.ones(2))], **group}]


# -- what the names mean -------------------------------------------------------------------------


def test_every_name_means_ours_and_comes_back():
    places = [
        *((torch.optim, name) for name in ("SGD", "Adam", "AdamW")),
        *((lr_scheduler, theirs.__name__) for theirs in SCHEDULERS if theirs is not stock.SWALR),
        (swa_utils, "SWALR"),
        (adamw, "AdamW"),
        (adamw, "Adam"),
    ]
    before = [getattr(module, name) for module, name in places]
    with fused_sched.swap() as swap:
        for module, name in places:
            found = getattr(module, name)
            assert found is (OPTIMIZERS | SCHEDULERS)[getattr(stock, name)]
            assert f"{module.__name__}.{name}" in swap.names
    assert [getattr(module, name) for module, name in places] == before
    assert len(SCHEDULERS) == 16


def test_swaps_inside_one_another_restore_at_the_outermost():
    with fused_sched.swap():
        with fused_sched.swap() as inner:
            assert inner.names == []
        assert torch.optim.AdamW is fused_sched.optim.AdamW
    assert torch.optim.AdamW is stock.AdamW


def test_a_name_that_somebody_assigned_meanwhile_is_left(monkeypatch):
    monkeypatch.setattr(torch.optim, "SGD", stock.SGD)  # put back after the test
    with fused_sched.swap():
        torch.optim.SGD = mine = SimpleNamespace()
    assert torch.optim.SGD is mine


def test_an_error_inside_restores():
    with pytest.raises(KeyError), fused_sched.swap():
        raise KeyError
    assert torch.optim.SGD is stock.SGD


def test_only_one_file_looks_torchs_classes_up():
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.optim"))
        or (
            isinstance(node, ast.ImportFrom)
            and str(node.module).startswith("torch.optim")
            and any(not alias.name.startswith("_") for alias in node.names)
        )
    }
    assert found == {"stock.py"}


# -- every optimizer and scheduler, all names swapped --------------------------------------------


@pytest.mark.parametrize("row", **named(OF_TORCH))
def test_optimizers_with_names_swapped_step_as_torch(row, cpu_engine):
    theirs, ours = three(), three()
    stock_opt = row.build(torch.optim, theirs, foreach=False)
    with fused_sched.swap():
        opt = row.build(torch.optim, ours)
        assert type(opt) is getattr(fused_sched.optim, row.name)
        for step in range(3):
            for params, one in ((theirs, stock_opt), (ours, opt)):
                set_grads(params, step)
                one.step()
    check(ours, theirs)


@pytest.mark.parametrize("row", **named(SCHEDULER_CASES))
def test_schedules_with_names_swapped_give_torchs_values(row, cpu_engine):
    theirs = Side(torch.optim, lr_scheduler, "SGD", [row.build])
    with fused_sched.swap():
        ours = Side(torch.optim, lr_scheduler, "SGD", [row.build])
        for step in range(1, row.horizon(STEPS) + 1):
            for side in (theirs, ours):
                side.step()
                row.advance(side.scheduler, step)
    assert type(ours.scheduler) in SCHEDULERS.values()
    for mine, stocks in zip(ours.opt.param_groups, theirs.opt.param_groups):
        assert_same(without_params(mine), without_params(stocks))
    assert_same(ours.scheduler.state_dict(), theirs.scheduler.state_dict())


@pytest.mark.parametrize("row", **named(SCHEDULER_CASES))
def test_what_was_made_before_is_fused_while_swapped(row):
    side = Side(torch.optim, lr_scheduler, "AdamW", [row.build])
    with fused_sched.swap(), fused_sched.use_engine("native"):
        fused_sched.fuse(side.opt, side.scheduler)
        side.step()
    assert type(side.opt) is fused_sched.optim.AdamW
    assert type(side.scheduler) in SCHEDULERS.values()


def test_values_of_a_plateau_are_asked_with_its_metrics(swapped):
    scheduler = lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(one_param(), lr=0.1), patience=0)
    assert scheduler.values(3, metrics=[1.0, 1.0])["lr"].flatten().tolist() == pytest.approx(
        [0.1, 0.1, 0.01]
    )


# -- what scripts ask torch's classes ------------------------------------------------------------


@pytest.mark.parametrize("theirs", **named([*OPTIMIZERS]))
def test_an_optimizer_shows_torchs_arguments(theirs):
    """As nanoGPT looks for ``fused`` in AdamW's; after them options that torch lacks."""
    ours = inspect.signature(OPTIMIZERS[theirs]).parameters
    expected = inspect.signature(theirs).parameters
    assert list(ours.items())[: len(expected)] == list(expected.items())
    assert list(ours)[len(expected) :] == list(OPTIMIZERS[theirs].optional)


@pytest.mark.parametrize("theirs", **named([*SCHEDULERS]))
def test_a_scheduler_shows_torchs_arguments_first(theirs):
    ours = list(inspect.signature(SCHEDULERS[theirs]).parameters)
    shown = list(inspect.signature(theirs).parameters)
    assert ours[: len(shown)] == shown
    assert set(ours[len(shown) :]) <= {"horizon", "hyper"}


def test_a_subclass_shows_its_own_arguments():
    class Mine(fused_sched.lr_scheduler.StepLR):
        def __init__(self, optimizer, days):
            super().__init__(optimizer, 24 * days)

    class MyAdamW(fused_sched.optim.AdamW):
        def __init__(self, model, rate=0.1):
            super().__init__(model.parameters(), rate)

    assert list(inspect.signature(Mine).parameters) == ["optimizer", "days"]
    assert list(inspect.signature(MyAdamW).parameters) == ["model", "rate"]


@pytest.mark.parametrize("other", **named([*OPTIMIZERS]))
@pytest.mark.parametrize("one", **named([*OPTIMIZERS]))
def test_our_optimizers_descend_from_one_another_as_torchs_do(one, other):
    assert issubclass(OPTIMIZERS[one], OPTIMIZERS[other]) == issubclass(one, other)


def test_instances_know_both_classes_and_those_of_before_only_torchs(swapped):
    before = stock.AdamW(one_param())
    made = torch.optim.AdamW(one_param())
    assert isinstance(made, torch.optim.AdamW) and isinstance(made, stock.AdamW)
    assert isinstance(made, torch.optim.Adam) and isinstance(made, torch.optim.Optimizer)
    assert not isinstance(before, torch.optim.AdamW)


def test_a_subclass_made_while_swapped_is_ours_and_stays_so():
    with fused_sched.swap():

        class Mine(torch.optim.AdamW):
            pass

    opt = Mine(one_param(), lr=0.1)
    opt.param_groups[0]["params"][0].grad = torch.ones(2)
    opt.step()
    assert isinstance(opt, fused_sched.optim.AdamW)
    assert "cpu" in fused_sched.explain(opt).engine


def test_copies_and_pickles_survive_the_swap():
    with fused_sched.swap():
        opt = torch.optim.SGD(one_param(), lr=0.1)
        scheduler = lr_scheduler.StepLR(opt, 2)
        text = pickle.dumps(scheduler)
        twin = copy.deepcopy(scheduler)
    for one in (pickle.loads(text), twin):
        assert type(one) is fused_sched.lr_scheduler.StepLR
        assert type(one.optimizer) is fused_sched.optim.SGD


def test_a_plateau_made_before_is_refused_inside_a_composite_as_by_torch():
    opt = stock.SGD(one_param(), lr=0.1)
    plateau = stock.ReduceLROnPlateau(opt)
    with fused_sched.swap():
        with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
            lr_scheduler.ChainedScheduler([plateau])
        with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
            lr_scheduler.SequentialLR(opt, [plateau], milestones=[])


@pytest.mark.parametrize("row", **named(SCHEDULER_CASES))
def test_a_scheduler_on_tensor_lrs_has_torchs_attributes_only(row):
    """Torch's tests go through ``__dict__`` to compare a scheduler with its copy."""
    attributes = []
    for swap in (nullcontext, fused_sched.swap):
        with swap(), fused_sched.use_engine("native"):
            side = Side(torch.optim, lr_scheduler, "SGD", [])
            for group in side.opt.param_groups:
                group["lr"] = torch.tensor(group["lr"])
            scheduler = row.build(lr_scheduler, side.opt)
            for step in range(1, row.horizon(3) + 1):
                side.step()
                row.advance(scheduler, step)
            attributes.append({*vars(scheduler)} - {"_cached"})
    assert attributes[1] == attributes[0]
