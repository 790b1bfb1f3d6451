"""Schedule-Free's two modes, and its checkpoints to and from the package that introduced it."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from tests import schedule_free_reference
from tests.cases import gradient
from tests.differences import note_params

ENGINES = ("eager", "native", "triton")
NAMES = ("AdamWScheduleFree", "SGDScheduleFree")
OPTIONS = {"lr": 0.05, "weight_decay": 0.1, "warmup_steps": 3, "r": 0.5}


def packages() -> list[Any]:
    """The formula written anew, and the package itself where it is installed."""
    found = [schedule_free_reference]
    try:
        import schedulefree

        found.append(schedulefree)
    except ImportError:
        pass
    return [pytest.param(module, id=module.__name__.rpartition(".")[2]) for module in found]


over_packages = pytest.mark.parametrize("package", packages())
over_names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request):
    with fused_sched.use_engine(request.param):
        yield request.param


def tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 130, (7, 5))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def make(module: ModuleType, name: str, params: list[Tensor] | None = None) -> tuple[Any, Any]:
    leaves = [Parameter(p.detach().clone()) for p in params or tensors()]
    return getattr(module, name)(leaves, **OPTIONS), leaves


def train(opt: Any, params: list[Tensor], steps: range) -> None:
    """The last param has no gradient at the first step and at every third one."""
    for step in steps:
        for number, param in enumerate(params):
            param.grad = None if number == 2 and step % 3 == 0 else gradient(param, step)
        opt.step()


def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
    note_params(ours, theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@over_packages
@over_names
def test_both_modes_have_the_packages_values(package, name):
    (opt, ours), (other, theirs) = make(fused_sched.optim, name), make(package, name)
    for mode in (opt.train, other.train):
        mode()
    train(opt, ours, range(5))
    train(other, theirs, range(5))
    check(ours, theirs)
    for mode in (opt.eval, other.eval, opt.eval, other.eval):  # twice is once
        mode()
    check(ours, theirs)
    for mode in (opt.train, other.train):
        mode()
    train(opt, ours, range(5, 9))
    train(other, theirs, range(5, 9))
    check(ours, theirs)


@over_packages
@over_names
def test_the_groups_numbers_are_the_packages(package, name):
    (opt, ours), (other, theirs) = make(fused_sched.optim, name), make(package, name)
    for step in range(5):
        for one, params in ((opt, ours), (other, theirs)):
            one.train()
            train(one, params, range(step, step + 1))
        for key in ("k", "lr_max", "weight_sum", "scheduled_lr", "train_mode"):
            mine, reference = opt.param_groups[0][key], other.param_groups[0][key]
            assert type(mine) is type(reference)
            assert mine == pytest.approx(reference, rel=1e-14), key


@over_packages
@over_names
def test_checkpoints_go_both_ways(package, name):
    for first, second in ((fused_sched.optim, package), (package, fused_sched.optim)):
        one, params = make(first, name)
        one.train()
        train(one, params, range(4))
        one.eval()
        saved = copy.deepcopy(one.state_dict())
        other, copies = make(second, name, params)
        other.load_state_dict(saved)
        for opt in (one, other):
            opt.train()
        train(one, params, range(4, 8))
        train(other, copies, range(4, 8))
        check(copies, params)
        assert list(one.state_dict()["param_groups"][0]) == list(saved["param_groups"][0])


@over_names
def test_no_step_in_evaluation_mode(name):
    opt, params = make(fused_sched.optim, name)
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\) before training"):
        train(opt, params, range(1))
    opt.train()
    train(opt, params, range(3))
    opt.eval()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=f"{name}.step"):
        train(opt, params, range(1))
    assert all(map(torch.equal, params, before))


@over_names
def test_a_fused_schedule_moves_its_lr(name):
    (opt, ours), (other, theirs) = make(fused_sched.optim, name), make(fused_sched.optim, name)
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, sched)
    for one in (opt, other):
        one.train()
    for step in range(6):
        train(opt, ours, range(step, step + 1))
        sched.step()
        train(other, theirs, range(step, step + 1))
        other.param_groups[0]["lr"] *= 0.5
    check(ours, theirs)


@over_names
def test_a_step_is_one_launch(name, engine):
    opt, params = make(fused_sched.optim, name)
    opt.train()
    train(opt, params, range(2))
    launches = fused_sched.explain(opt).launches_per_step
    assert launches == (None if engine == "eager" else 1)


BETWEEN_0_AND_1 = {"AdamWScheduleFree": "betas", "SGDScheduleFree": "momentum"}
WRONG = [{"lr": -1.0}, {"weight_decay": -0.1}, {"warmup_steps": -1}]


@pytest.mark.parametrize("options", WRONG, ids=str)
@over_names
def test_bad_arguments_are_refused(name, options):
    with pytest.raises(ValueError, match="Invalid"):
        getattr(fused_sched.optim, name)(tensors(), **options)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
@pytest.mark.parametrize(("name", "option"), BETWEEN_0_AND_1.items())
def test_the_interpolation_lies_between_its_two_ends(name, option, momentum):
    given = (momentum, 0.9) if option == "betas" else momentum
    with pytest.raises(ValueError, match="Invalid .*beta"):
        getattr(fused_sched.optim, name)(tensors(), **{option: given})
