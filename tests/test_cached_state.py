"""Cached launches under somebody's eyes: a held ``optimizer.state`` and step hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import fused_sched
from tests.test_cached import Both, Run
from tests.training import check, named


@pytest.fixture(autouse=True)
def _native():
    with fused_sched.use_engine("native"):
        yield


class Held(Both):
    """Two trainings whose ``optimizer.state`` somebody keeps, and reads without asking anew."""

    def __init__(self, name: str = "AdamW", fused: bool = True, **options: Any) -> None:
        if name == "SGD":
            options = {"momentum": 0.9} | options
        super().__init__(name, fused, **options)
        for run in (self.stock, self.ours):
            run.held = run.opt.state  # type: ignore[attr-defined]
        self.step(2)

    def check(self) -> None:
        check(self.ours.params, self.stock.params)
        for mine, theirs in zip(self.ours.params, self.stock.params, strict=True):
            ours, stock = self.ours.held.get(mine, {}), self.stock.held.get(theirs, {})
            assert ours.keys() == stock.keys()
            for name, value in stock.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=name)


def entries(run: Run) -> list[dict[str, Any]]:
    return list(run.held.values())


def step_in_place(run: Run) -> None:
    for entry in entries(run):
        if "step" in entry:
            entry["step"] += 100


def one_step_in_place(run: Run) -> None:
    if "step" in entries(run)[1]:
        entries(run)[1]["step"].fill_(1)


def other_step(run: Run) -> None:
    if "step" in entries(run)[0]:
        entries(run)[0]["step"] = torch.tensor(50.0)


def step_of_other_dtype(run: Run) -> None:
    if "step" in entries(run)[0]:
        entries(run)[0]["step"].data = torch.tensor(50.0, dtype=torch.float64)


def moments_in_place(run: Run) -> None:
    for value in entries(run)[0].values():
        value.mul_(0.5)


def other_moments(run: Run) -> None:
    for name, value in entries(run)[2].items():
        if name != "step":
            entries(run)[2][name] = value * 3


def other_memory_of_moments(run: Run) -> None:
    for value in entries(run)[0].values():
        value.data = value.data * 2


def other_entry(run: Run) -> None:
    run.held[run.params[1]] = copy.deepcopy(run.held[run.params[1]])


def no_entry(run: Run) -> None:
    del run.held[run.params[1]]


def nothing_left(run: Run) -> None:
    run.held.clear()


def more_in_an_entry(run: Run) -> None:
    entries(run)[0]["note"] = torch.ones(2)


def stranger(run: Run) -> None:
    run.held[torch.ones(3)] = {}
    run.held.popitem()


def read_anew(run: Run) -> None:
    assert run.opt.state is run.held
    run.opt.state_dict()


def loaded(run: Run) -> None:
    run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))
    run.held = run.opt.state


CHANGES = [
    step_in_place,
    one_step_in_place,
    other_step,
    step_of_other_dtype,
    moments_in_place,
    other_moments,
    other_memory_of_moments,
    other_entry,
    no_entry,
    nothing_left,
    more_in_an_entry,
    stranger,
    read_anew,
    loaded,
]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_held_state_is_current_after_every_cached_step(name, fused):
    both = Held(name, fused)
    cached = both.cached
    assert cached is not None
    for _ in range(5):
        both.step()
        both.check()
    assert both.cached is cached and cached.take()[0] > 0


@pytest.mark.parametrize("change", **named(CHANGES))
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_change_through_a_held_state_counts(name, change):
    both = Held(name)
    assert both.cached is not None
    both.do(change)
    both.step()
    both.check()
    both.step(5)
    assert both.cached is not None
    both.check()


def test_step_tensor_that_comes_back_is_read():
    both = Held()

    def away(run: Run) -> None:
        run.kept = entries(run)[0]["step"]
        entries(run)[0]["step"] = torch.tensor(3.0)

    def back(run: Run) -> None:
        entries(run)[0]["step"] = run.kept

    for change in (away, back):
        both.do(change)
        both.step(3)
        both.check()


def test_step_tensors_of_float64_count():
    torch.set_default_dtype(torch.float64)
    try:
        both = Held()
        both.step(3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert both.cached is not None
    assert entries(both.ours)[0]["step"].dtype == torch.float64
    both.check()


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
def test_held_state_counts_on_after_a_step_with_a_scaler(found_inf):
    """Only the device knows whether that step was made."""
    both = Held(fused=False)
    assert both.cached is not None
    for run in (both.stock, both.ours):
        run.backward()
    both.ours.opt.found_inf = torch.tensor(found_inf)
    both.ours.opt.step()
    del both.ours.opt.found_inf
    if not found_inf:
        both.stock.opt.step()
    for run in (both.stock, both.ours):
        run.scheduler.step()
    for _ in range(4):
        both.step()
        both.check()
    assert both.cached is not None


def test_param_without_gradient_does_not_count():
    both = Held(fused=False)
    for missing in (0, 2, None, 1, 0):
        for run in (both.stock, both.ours):
            run.backward()
            if missing is not None:
                run.params[missing].grad = None
            run.opt.step()
        both.check()
    assert both.cached is not None


def test_param_that_had_no_gradient_yet_enters_a_held_state():
    both = Both()
    for run in (both.stock, both.ours):
        param = torch.nn.Parameter(torch.ones(3))
        run.opt.add_param_group({"params": [param], "lr": 0.1, "initial_lr": 0.1})
        run.scheduler.base_lrs.append(0.1)
        run.held = run.opt.state
    both.step(4)
    assert both.cached is not None and len(both.ours.held) == 3
    for run in (both.stock, both.ours):
        run.params.append(run.opt.param_groups[-1]["params"][0])
    both.step(3)
    Held.check(both)
    assert len(both.ours.held) == 4


def test_state_that_nobody_holds_any_more_is_counted_when_it_is_read():
    both = Held()
    for run in (both.stock, both.ours):
        del run.held
    both.step(2)
    both.do(lambda run: run.opt.param_groups[0].update(weight_decay=0.2))  # a full step looks
    both.step(4)
    keeper = both.ours.opt._ledger.keeper
    assert not keeper.state_exposed and not keeper.counts.held and both.cached is not None
    for run in (both.stock, both.ours):
        run.held = run.opt.state
    both.check()
    both.step(3)
    both.check()


# -- hooks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_steps_between_hooks_are_cached(fused):
    both = Both(fused=fused)
    seen: list[Any] = []
    for run in (both.stock, both.ours):
        run.opt.register_step_pre_hook(lambda opt, *_: seen.append(opt))
        run.opt.register_step_post_hook(lambda opt, *_: seen.append(opt))
    cached = both.cached
    cached.take()
    both.ours.opt.step()
    assert cached.take()[0] == 1 and seen == [both.ours.opt] * 2


def other_gradient(opt: Any, *_: Any) -> None:
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = param.grad * 0.5


def other_lr(opt: Any, *_: Any) -> None:
    opt.param_groups[0]["lr"] *= 0.9


def other_decay(opt: Any, *_: Any) -> None:
    opt.param_groups[1]["weight_decay"] = 0.3


def smaller_moments(opt: Any, *_: Any) -> None:
    for entry in opt.state.values():
        entry["exp_avg"].mul_(0.9)


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("hook", [other_gradient, other_lr, other_decay, smaller_moments])
def test_what_a_hook_changes_counts_in_its_step(hook, when):
    both = Both(fused=False)
    both.do(lambda run: getattr(run.opt, f"register_step_{when}_hook")(hook))
    both.step(4)
    both.check()


def test_scaler_is_heard_inside_of_hooks():
    both = Both()
    both.do(lambda run: run.opt.register_step_pre_hook(lambda *_: None))
    before = [param.detach().clone() for param in both.ours.params]
    both.ours.opt.found_inf = torch.ones(())
    both.ours.opt.step()
    del both.ours.opt.found_inf
    assert all(map(torch.equal, both.ours.params, before))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_first_step_is_heard():
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    seen: list[Any] = []
    handle = register_optimizer_step_pre_hook(lambda opt, *_: seen.append(opt))
    try:
        heard = Run(fused_sched.optim, fused_sched.lr_scheduler, "AdamW")
        heard.step()
    finally:
        handle.remove()
    assert seen == [heard.opt]
    profiled = Run(fused_sched.optim, fused_sched.lr_scheduler, "AdamW")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        profiled.step()
    assert [e.count for e in profile.key_averages() if e.key == "Optimizer.step#AdamW.step"] == [1]


def test_optimizers_that_begin_alike_go_on_by_themselves():
    """They share what an optimizer without rows or schedule has."""
    first, second = (Both(fused=False) for _ in range(2))
    fused_sched.fuse(first.ours.opt, first.ours.scheduler)
    for both in (first, second):
        both.step(2)
    second.do(lambda run: run.opt.param_groups[0].update(lr=0.05))
    for both in (first, second):
        both.step(3)
        both.check()
