"""torch's own tables, ``optim_db``: our classes do what the stock classes' for-loops do."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import sys
import types
import unittest
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.swap import OPTIMIZERS
from tests.test_state import check_state, roundtrip, shape_of_state
from tests.training import OURS, check, launched, named, set_grads, stepped, train
from tests.twins import assert_same, without_params

STOCK = torch.optim
NAMES = tuple(cls.__name__ for cls in OPTIMIZERS.values())


def _optim_db() -> list[Any]:
    """torch's table; its import asks for a module expecttest, and would freeze torch's flags."""
    with pytest.MonkeyPatch.context() as patch:
        expecttest = types.ModuleType("expecttest")
        expecttest.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "expecttest", expecttest)
        patch.setattr(sys, "argv", sys.argv[:1])
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal.common_optimizers import optim_db
    return optim_db


INFOS = [info for info in _optim_db() if info.name in NAMES]


# -- configurations ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """One OptimizerInput of torch's table."""

    name: str
    desc: str
    kwargs: dict[str, Any]

    @property
    def interpreted(self) -> bool:
        """Whether it also runs in Triton's interpreter; rows of tests/cases.py do so of each."""
        return self.name in ("SGD", "Adam", "AdamW")

    @property
    def id(self) -> str:
        return f"{self.name}-{self.desc.replace(' ', '_')}"

    def build(self, module: Any, params: Any, **overrides: Any) -> Any:
        """The class of ``torch.optim`` or ``fused_sched.optim``, with tensors of its own."""
        return getattr(module, self.name)(params, **copy.deepcopy(self.kwargs) | overrides)

    def loop(self, params: Any) -> Any:
        """The stock class's for-loop."""
        flags = ("foreach", "fused", "capturable", "differentiable")
        off = {flag: False for flag in flags if flag in self.kwargs}
        return self.build(STOCK, params, **off | {"foreach": False})

    def takes(self, option: str) -> bool:
        """Whether the constructor knows an option."""
        return option in inspect.signature(getattr(STOCK, self.name)).parameters

    def having(self, **flags: Any) -> Configuration:
        desc = "_".join([self.desc, *flags])
        return Configuration(self.name, desc, self.kwargs | flags)


def _inputs(device: str) -> list[Configuration]:
    return [
        Configuration(info.name, given.desc, given.kwargs)
        for info in INFOS
        for given in info.optim_inputs_func(device=device)
    ]


PLAIN = _inputs("cpu")
CAPTURABLE = [row for row in _inputs("cuda") if row.kwargs.get("capturable")]
"""What torch's for-loop refuses on a CPU; the table's tensors are CPU tensors all the same."""

CONFIGURATIONS = [
    *PLAIN,
    *(row.having(foreach=True) for row in PLAIN),
    *(row.having(fused=True) for row in PLAIN if row.takes("fused")),
]
ONE_OF_EACH = [next(row for row in reversed(PLAIN) if row.name == name) for name in NAMES]
HELD_IN_TENSORS = [row for row in PLAIN + CAPTURABLE if isinstance(row.kwargs.get("lr"), Tensor)]


def two() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 3), (4,))]


def test_the_tables_are_there():
    assert {info.name for info in INFOS} == set(NAMES)
    assert [len(rows) for rows in (PLAIN, CAPTURABLE, HELD_IN_TENSORS)] == [70, 36, 15]
    assert not torch.backends.flags_frozen()


def assert_as_stock(
    opt: Any, ours: list[Tensor], loop: Any, theirs: list[Tensor], untouched: Any
) -> None:
    """Params and state as the for-loop's; groups as those of a stock optimizer with our flags."""
    check(ours, theirs)
    check_state(opt, loop)
    assert shape_of_state(opt, ours) == shape_of_state(loop, theirs)
    groups, expected = opt.state_dict()["param_groups"], untouched.state_dict()["param_groups"]
    assert [list(group) for group in groups] == [list(group) for group in expected]
    assert_same(groups, expected)
    for mine, other in zip(opt.param_groups, untouched.param_groups, strict=True):
        assert list(mine) == list(other)
        assert_same(without_params(mine), without_params(other))
    assert_same(opt.defaults, untouched.defaults)


def steps_as_stock(row: Configuration) -> None:
    ours, theirs = two(), two()
    opt, loop = row.build(OURS, ours), row.loop(theirs)
    untouched = row.build(STOCK, two())
    for step in range(3):
        train(opt, ours, [step])
        train(loop, theirs, [step])
        assert_as_stock(opt, ours, loop, theirs, untouched)


@pytest.mark.parametrize(**stepped(CONFIGURATIONS))
def test_configuration_steps_as_stock(row, engine):
    steps_as_stock(row)


@pytest.mark.parametrize(**launched(CAPTURABLE))
def test_capturable_steps_without_a_gpu(row, launch_engine):
    steps_as_stock(row)


def ending(row: Configuration, module: Any, **overrides: Any) -> tuple[type, str] | None:
    """How building it and one step end: the error, if there is one."""
    params = two()
    try:
        train(row.build(module, params, **overrides), params, range(1))
    except Exception as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("row", **named(CAPTURABLE))
def test_capturable_on_the_eager_engine_ends_as_stocks_loop(row):
    with fused_sched.use_engine("eager"):
        ours = ending(row, OURS, foreach=False)
    assert ours == ending(row, STOCK, foreach=False) is not None


@pytest.mark.parametrize("row", **named(PLAIN))
def test_differentiable_on_leaves_ends_as_stocks(row):
    """They cannot be recorded in place; tests/test_fallback.py has those that can."""
    ours = ending(row, OURS, differentiable=True)
    assert ours == ending(row, STOCK, differentiable=True) is not None


# -- errors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """One ErrorOptimizerInput of torch's table."""

    name: str
    given: Any

    @property
    def id(self) -> str:
        return f"{self.name}-{self.given.optimizer_error_input.desc.replace(' ', '_')}"

    def ending(self, module: Any) -> tuple[type, str] | None:
        inputs = self.given.optimizer_error_input
        params = two() if inputs.params is None else inputs.params
        try:
            getattr(module, self.name)(params, **copy.deepcopy(inputs.kwargs)).step()
        except Exception as error:
            return type(error), str(error)
        return None


BAD = [
    Bad(info.name, given)
    for info in INFOS
    for given in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]


@pytest.mark.parametrize("bad", **named(BAD))
def test_error_input_ends_as_stock_and_as_the_table_says(bad, engine):
    error = bad.ending(OURS)
    assert error == bad.ending(STOCK)
    assert error[0] is bad.given.error_type
    assert re.search(bad.given.error_regex, error[1])


# -- hooks ---------------------------------------------------------------------------------------

REGISTRATIONS = (
    "register_step_pre_hook",
    "register_step_post_hook",
    "register_state_dict_pre_hook",
    "register_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
)
PREPENDING = REGISTRATIONS[2:]


def facts(value: Any) -> Any:
    """What a hook was given, told without addresses."""
    if isinstance(value, (tuple, list)):
        return [facts(item) for item in value]
    return sorted(value) if isinstance(value, dict) else type(value).__name__


def noting(log: list[Any], hook: str) -> Callable[..., None]:
    return lambda *given: log.append((hook, facts(given)))


@dataclass
class Run:
    """One training of a class of ours or of torch's."""

    opt: Any
    params: list[Tensor]
    log: list[Any]

    def closure(self) -> float:
        self.log.append(("closure", torch.is_grad_enabled()))
        set_grads(self.params, 1)
        return 3.5


def runs(row: Configuration) -> tuple[Run, Run]:
    """Ours, and stock's for-loop."""
    ours, theirs = two(), two()
    return Run(row.build(OURS, ours, foreach=False), ours, []), Run(row.loop(theirs), theirs, [])


def step(run: Run) -> None:
    train(run.opt, run.params, range(1))


def step_with_closure(run: Run) -> None:
    run.log.append(run.opt.step(run.closure))


def step_with_keyword(run: Run) -> None:
    run.log.append(run.opt.step(closure=run.closure))


def save_and_load(run: Run) -> None:
    run.opt.load_state_dict(run.opt.state_dict())


USES = [step, step_with_closure, step_with_keyword, save_and_load]


@pytest.mark.parametrize("use", **named(USES))
@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_hooks_see_what_stocks_see(row, use, engine):
    both = runs(row)
    for run in both:
        train(run.opt, run.params, range(2))
        for number, registration in enumerate(REGISTRATIONS):
            getattr(run.opt, registration)(noting(run.log, f"{registration} {number}"))
        for registration in PREPENDING:
            getattr(run.opt, registration)(noting(run.log, "prepended"), prepend=True)
        use(run)
    ours, stock = both
    assert ours.log == stock.log != []
    check(ours.params, stock.params)


def closure_from_hook(run: Run) -> None:
    """A step pre-hook may give other arguments."""
    run.opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, run.closure), {}))
    run.log.append(run.opt.step())


def state_dict_from_hook(run: Run) -> None:
    """A state_dict post-hook may give another one."""
    run.opt.register_state_dict_post_hook(lambda _, saved: {"mine": saved["param_groups"]})
    run.log.append(facts(run.opt.state_dict()))


def loaded_from_hook(run: Run) -> None:
    """A load_state_dict pre-hook may give another one."""
    saved = copy.deepcopy(run.opt.state_dict())
    step(run)
    run.opt.register_load_state_dict_pre_hook(lambda opt, given: saved)
    run.opt.load_state_dict({})


def step_not_as_it_should_be(run: Run) -> None:
    """A step pre-hook must give a pair."""
    run.opt.register_step_pre_hook(lambda *_: 5)
    try:
        step(run)
    except RuntimeError as error:
        run.log.append(str(error).partition("must return")[1:])


CHANGING = [closure_from_hook, state_dict_from_hook, loaded_from_hook, step_not_as_it_should_be]


@pytest.mark.parametrize("use", **named(CHANGING))
@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_hooks_may_change_what_they_see(row, use, engine):
    ours, stock = both = runs(row)
    for run in both:
        train(run.opt, run.params, range(2))
        use(run)
    assert ours.log == stock.log
    for run in both:
        run.opt._optimizer_state_dict_post_hooks.clear()
    check(ours.params, stock.params)
    check_state(ours.opt, stock.opt)


# -- copies --------------------------------------------------------------------------------------


def deepcopied(run: Run) -> Run:
    return Run(*copy.deepcopy((run.opt, run.params)), [])


def pickled(run: Run) -> Run:
    return Run(*pickle.loads(pickle.dumps((run.opt, run.params))), [])


@pytest.mark.parametrize("duplicate", **named([deepcopied, pickled]))
@pytest.mark.parametrize(**stepped(ONE_OF_EACH + HELD_IN_TENSORS[:1]))
def test_copies_made_mid_run_go_on_as_stocks(row, duplicate, engine):
    """The copies take other gradients than the originals."""
    ours, stock = both = runs(row)
    for run in both:
        train(run.opt, run.params, range(2))
        run.opt.note = "public attributes are lost"
    twins = [duplicate(run) for run in both]
    for run, twin in zip(both, twins, strict=True):
        train(twin.opt, twin.params, range(7, 9))
        train(run.opt, run.params, range(2, 4))
    for mine, other in ((ours, stock), twins):
        check(mine.params, other.params)
        check_state(mine.opt, other.opt)
        assert_same(mine.opt.state_dict()["param_groups"], other.opt.state_dict()["param_groups"])
    assert [hasattr(twin.opt, "note") for twin in twins] == [False, False]


# -- checkpoints: those of the other kind are in test_state.py -----------------------------------


@pytest.mark.parametrize(**launched(HELD_IN_TENSORS))
def test_checkpoints_with_tensors_pass_both_ways(row, launch_engine):
    """torch -> ours -> torch, through a file; torch alone is the reference."""
    alone, params, saved = two(), two(), None
    expected = row.loop(alone)
    for leg, build in enumerate([row.loop, lambda params: row.build(OURS, params), row.loop]):
        params = [param.detach().clone().requires_grad_() for param in params]
        opt = build(params)
        if saved is not None:
            opt.load_state_dict(saved)
        for group in opt.param_groups:  # what a CPU's for-loop refuses
            group.update({"capturable": False} if "capturable" in group else {})
        for step in range(2 * leg, 2 * leg + 2):
            train(opt, params, [step])
            train(expected, alone, [step])
        saved = roundtrip(opt.state_dict())
    check(params, alone)
    check_state(opt, expected)
    assert_same(opt.state_dict()["param_groups"], expected.state_dict()["param_groups"])


LATER = (
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
    "amsgrad",
    "nesterov",
)
"""Keys of a group that some torch of the past did not have."""


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def spoil(saved: dict[str, Any]) -> None:
        for group in saved["param_groups"]:
            for key in keys:
                group.pop(key, None)

    spoil.__name__ = f"without_{keys[0]}_to_{keys[-1]}"
    return spoil


def with_steps(number: type) -> Callable[[dict[str, Any]], None]:
    def spoil(saved: dict[str, Any]) -> None:
        for entry in saved["state"].values():
            entry.update({"step": number(entry["step"])} if "step" in entry else {})

    spoil.__name__ = f"with_{number.__name__}_steps"
    return spoil


def of_torch_1(saved: dict[str, Any]) -> None:
    without(*LATER)(saved)
    with_steps(int)(saved)


OLDER = [*(without(key) for key in LATER), with_steps(int), with_steps(float), of_torch_1]


def through_load(run: Run, saved: dict[str, Any]) -> None:
    run.opt.load_state_dict(saved)


def through_pickle(run: Run, saved: dict[str, Any]) -> None:
    """An optimizer that was pickled as a whole."""
    of_id = dict(enumerate(run.params))
    groups = [{**group, "params": run.params} for group in saved["param_groups"]]
    state = {of_id[number]: entry for number, entry in saved["state"].items()}
    old = {"defaults": run.opt.defaults, "state": defaultdict(dict, state), "param_groups": groups}
    run.opt = object.__new__(type(run.opt))
    run.opt.__setstate__(old)


@pytest.mark.parametrize("load", **named([through_load, through_pickle]))
@pytest.mark.parametrize("spoil", **named(OLDER))
@pytest.mark.parametrize(**launched(ONE_OF_EACH))
def test_older_checkpoints_load_as_in_stock(row, spoil, load, launch_engine):
    ours, stock = both = runs(row)
    train(stock.opt, stock.params, range(2))
    saved = stock.opt.state_dict()
    spoil(saved)
    for run in both:
        load(run, copy.deepcopy(saved))
        for param, value in zip(run.params, stock.params, strict=True):
            param.data.copy_(value.detach())
        train(run.opt, run.params, range(2, 4))
    check(ours.params, stock.params)
    check_state(ours.opt, stock.opt)
    mine, other = (run.opt.state_dict()["param_groups"] for run in both)
    assert [list(group) for group in mine] == [list(group) for group in other]
    assert_same(mine, other)


# -- named params --------------------------------------------------------------------------------


def unnamed(params: list[Tensor]) -> Any:
    return params


def pairs(params: list[Tensor]) -> Any:
    return [(f"layer.{number}", param) for number, param in enumerate(params)]


def pairs_in_groups(params: list[Tensor]) -> Any:
    weight, bias = pairs(params)
    return [{"params": [weight]}, {"params": [bias], "lr": 0.5}]


def iterator(params: list[Tensor]) -> Any:
    return iter(pairs(params))


def as_added(one: Any) -> dict[str, Any]:
    return {"params": one([Parameter(torch.ones(2))]), "lr": 0.25}


NAMED = [unnamed, pairs, pairs_in_groups, iterator]


@pytest.mark.parametrize("naming", **named(NAMED))
@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_named_params_as_in_stock(row, naming, engine):
    saved = []
    for module in (OURS, STOCK):
        params = two()
        opt = row.build(module, naming(params), foreach=False)
        train(opt, params, range(2))
        opt.add_param_group(as_added(unnamed if naming is unnamed else pairs))
        train(opt, params, range(2, 3))
        saved.append((opt.state_dict(), [group.get("param_names") for group in opt.param_groups]))
    (ours, our_names), (stock, names) = saved
    assert our_names == names
    assert_same(ours["param_groups"], stock["param_groups"])
    assert list(ours["state"]) == list(stock["state"])


@pytest.mark.parametrize("into", **named([unnamed, pairs]))
@pytest.mark.parametrize("source", **named([unnamed, pairs]))
@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_names_of_a_checkpoint_as_in_stock(row, source, into, engine):
    theirs = two()
    other = row.build(STOCK, source(theirs))
    train(other, theirs, range(2))
    groups = []
    for module in (OURS, STOCK):
        opt = row.build(module, into(two()))
        opt.load_state_dict(other.state_dict())
        groups.append(opt.state_dict()["param_groups"])
    assert_same(*groups)
    assert [list(group) for group in groups[0]] == [list(group) for group in groups[1]]
