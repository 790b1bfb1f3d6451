"""Cached launches: taken when nothing changed, and never when something did."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import PROMISE
from tests.training import check, named

T_MAX = 40


@pytest.fixture(autouse=True)
def _native():
    with fused_sched.use_engine("native"):
        yield


class Run:
    """One training: three params in two groups, and a cosine schedule."""

    def __init__(self, optim: ModuleType, schedulers: ModuleType, name: str, **options: Any):
        torch.manual_seed(1)
        self.params = [Parameter(torch.randn(shape)) for shape in ((5, 3), (7,), (1,))]
        groups = [{"params": self.params[:2]}, {"params": self.params[2:], "lr": 0.2}]
        self.opt: Any = getattr(optim, name)(groups, lr=0.1, **options)
        self.scheduler: Any = schedulers.CosineAnnealingLR(self.opt, T_max=T_MAX)
        self.steps = 0
        self.calls = True  # the loop calls scheduler.step()

    def backward(self) -> None:
        self.steps += 1
        torch.manual_seed(self.steps)
        for param in self.params:
            param.grad = torch.randn_like(param.detach())

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.backward()
            self.opt.step()
            if self.calls:
                self.scheduler.step()


class Both:
    """Stock torch's run and ours, told to do the same."""

    def __init__(self, name: str = "AdamW", fused: bool = True, **options: Any) -> None:
        self.stock = Run(torch.optim, torch.optim.lr_scheduler, name, **options)
        self.ours = Run(fused_sched.optim, fused_sched.lr_scheduler, name, **options)
        if fused:
            fused_sched.fuse(self.ours.opt, self.ours.scheduler, interval=1)
        self.ours.calls = not fused
        self.step(4)

    def step(self, times: int = 1) -> None:
        self.stock.step(times)
        self.ours.step(times)

    def do(self, change: Callable[[Run], Any]) -> None:
        torch.manual_seed(7)
        change(self.stock)
        torch.manual_seed(7)
        change(self.ours)

    @property
    def cached(self) -> Any:
        return self.ours.opt._cached

    def check(self) -> None:
        check(self.ours.params, self.stock.params)
        for mine, theirs in zip(self.ours.opt.param_groups, self.stock.opt.param_groups):
            assert mine["lr"] == pytest.approx(float(theirs["lr"]), rel=PROMISE, abs=0.2 * PROMISE)
        assert self.ours.scheduler.last_epoch == self.stock.scheduler.last_epoch
        states = self.ours.opt.state, self.stock.opt.state
        for mine, theirs in zip(self.ours.params, self.stock.params):
            a, b = (state.get(p, {}) for state, p in zip(states, (mine, theirs)))
            assert {k: float(v) for k, v in a.items() if k == "step"} == {
                k: float(v) for k, v in b.items() if k == "step"
            }


def lr(run: Run) -> None:
    run.opt.param_groups[0]["lr"] *= 0.5


def lr_of_zero(run: Run) -> None:
    for group in run.opt.param_groups:
        group["lr"] = 0.0


def weight_decay(run: Run) -> None:
    run.opt.param_groups[0]["weight_decay"] = 0.3


def maximize(run: Run) -> None:
    run.opt.param_groups[1]["maximize"] = True


def read_everything(run: Run) -> None:
    run.opt.state_dict()
    run.scheduler.state_dict()
    run.scheduler.get_last_lr()


def doubled_state(run: Run) -> None:
    for entry in run.opt.state.values():
        for value in entry.values():
            value.mul_(2)


def replaced_state(run: Run) -> None:
    for entry in run.opt.state.values():
        for name in list(entry):
            entry[name] = entry[name] * 2


def loaded(run: Run) -> None:
    run.opt.load_state_dict(copy.deepcopy(run.opt.state_dict()))


def another_group(run: Run) -> None:
    run.params.append(Parameter(torch.randn(3)))
    run.opt.add_param_group({"params": [run.params[-1]], "lr": 0.2, "initial_lr": 0.2})
    run.scheduler.base_lrs.append(0.2)


def other_memory(run: Run) -> None:
    for param in run.params:
        param.data = param.data.clone()


def other_param(run: Run) -> None:
    run.params[1] = Parameter(torch.randn(7))
    run.opt.param_groups[0]["params"][1] = run.params[1]


def plain_groups(run: Run) -> None:
    run.opt.param_groups = [dict(group) for group in run.opt.param_groups]


def plain_group_in_place(run: Run) -> None:
    run.opt.param_groups[0] = {**run.opt.param_groups[0], "weight_decay": 0.5}


def other_schedule(run: Run) -> None:
    run.scheduler.eta_min = 0.01


CHANGES = [
    lr,
    lr_of_zero,
    weight_decay,
    maximize,
    read_everything,
    doubled_state,
    replaced_state,
    loaded,
    other_memory,
    other_param,
    plain_groups,
    plain_group_in_place,
    other_schedule,
]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("change", **named(CHANGES))
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_change_reaches_the_next_step(name, change, fused):
    both = Both(name, fused, **({"momentum": 0.9} if name == "SGD" else {}))
    assert both.cached is not None
    both.do(change)
    both.step(3)
    both.check()
    both.step(2)
    both.check()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_steps_are_cached_again_after_a_change(fused):
    both = Both(fused=fused)
    both.do(weight_decay)
    assert both.cached is None
    both.step(2)
    assert both.cached is not None
    assert both.cached.step(both.ours.opt)


def test_an_lr_edit_and_a_read_leave_it_cached():
    both = Both()
    cached = both.cached
    both.do(lr)
    assert both.ours.scheduler.get_last_lr()
    both.step(2)
    assert both.cached is cached
    both.check()


def test_group_added_in_explicit_mode():
    both = Both(fused=False)
    both.do(another_group)
    both.step(3)
    both.check()


# -- gradients -----------------------------------------------------------------------------------


def missing(run: Run) -> None:
    run.params[0].grad = None


def transposed(run: Run) -> None:
    run.params[0].grad = torch.randn(3, 5).t()


def with_gaps(run: Run) -> None:
    run.params[1].grad = torch.randn(7, 2)[:, 0]


def negated(run: Run) -> None:
    run.params[2].grad = torch.randn(1, dtype=torch.complex64).conj().imag


def empty_grads(run: Run) -> None:
    for param in run.params:
        param.grad = None


GRADS = [missing, transposed, with_gaps, negated, empty_grads]


@pytest.mark.parametrize("change", **named(GRADS))
def test_gradient_of_any_kind(change):
    both = Both()

    def step(run: Run) -> None:
        run.backward()
        change(run)
        run.opt.step()
        if run.calls:
            run.scheduler.step()

    for _ in range(2):
        both.do(step)
        both.step()
        both.check()


def test_sparse_gradient_raises_as_ever():
    both = Both()
    run = both.ours
    run.backward()
    run.params[0].grad = run.params[0].grad.to_sparse()
    before = run.params[1].detach().clone()
    with pytest.raises(RuntimeError, match="sparse"):
        run.opt.step()
    assert torch.equal(run.params[1], before)


def test_param_that_never_had_a_gradient_gets_one():
    both = Both()
    for run in (both.stock, both.ours):
        idle = Parameter(torch.randn(4, generator=torch.Generator().manual_seed(3)))
        run.opt.add_param_group({"params": [idle]})
        run.scheduler.base_lrs.append(0.1)
        run.opt.param_groups[2]["initial_lr"] = 0.1
        run.step(3)
        run.params.append(idle)
    assert both.cached is not None
    both.step(2)
    both.check()


# -- who watches ---------------------------------------------------------------------------------


def test_hooks_fire_once_a_step():
    opt = Both().ours.opt
    seen: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda *_: seen.append("pre")),
        opt.register_step_post_hook(lambda *_: seen.append("post")),
    ]
    opt.step()
    assert seen == ["pre", "post"]
    for handle in handles:
        handle.remove()
    opt.step()
    assert seen == ["pre", "post"]


def test_hooks_of_all_optimizers_fire():
    from torch.optim.optimizer import register_optimizer_step_post_hook

    opt = Both().ours.opt
    seen: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        opt.step()
    finally:
        handle.remove()
    assert seen == [opt]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_profiler_shows_one_range_a_step():
    opt = Both().ours.opt
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.step()
        opt.step()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#AdamW.step"] == 2


def test_scaler_is_heard():
    both = Both()
    opt, before = both.ours.opt, both.ours.params[0].detach().clone()
    opt.found_inf = torch.ones(1)
    opt.step()
    assert torch.equal(both.ours.params[0], before)
    del opt.found_inf
    opt.step()
    assert not torch.equal(both.ours.params[0], before)


def test_forced_engine_is_heard():
    both = Both()
    with fused_sched.use_engine("eager"):
        assert not both.cached.step(both.ours.opt)
        both.step()
    both.step(2)
    both.check()


def test_closure_runs_with_gradients_enabled():
    both = Both()

    def closure() -> float:
        assert torch.is_grad_enabled()
        both.ours.backward()
        return 3.5

    both.stock.step()
    assert both.ours.opt.step(closure) == 3.5
    both.check()


def test_subclass_with_a_step_of_its_own():
    class Counting(fused_sched.optim.SGD):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    param = Parameter(torch.ones(3))
    opt = Counting([param], lr=1.0)
    seen: list[Any] = []
    opt.register_step_pre_hook(lambda *_: seen.append(1))
    for _ in range(3):
        param.grad = torch.ones(3)
        opt.step()
    assert (opt.calls, len(seen), param.tolist()) == (3, 3, [-2.0] * 3)


# -- schedules -----------------------------------------------------------------------------------


def test_explicit_schedule_ends_with_torchs_error():
    param = Parameter(torch.ones(1))
    opt = fused_sched.optim.SGD([param], lr=0.1, momentum=0.9)
    scheduler = fused_sched.lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=6)
    param.grad = torch.ones(1)
    for _ in range(5):
        opt.step()
        scheduler.step()
    assert scheduler._cached is not None
    opt.step()
    with pytest.raises(ValueError, match="Tried to step 7 times"):
        scheduler.step()
        scheduler.step()


def test_two_explicit_schedules_keep_their_order():
    def run(optim: Any, schedulers: Any) -> list[float]:
        param = Parameter(torch.ones(1))
        opt = optim.SGD([param], lr=1.0)
        first = schedulers.ExponentialLR(opt, 0.9)
        second = schedulers.StepLR(opt, 3, gamma=0.5)
        values = []
        for step in range(12):
            param.grad = torch.ones(1)
            opt.step()
            first.step()
            if step % 2:
                second.step()
            values.append(opt.param_groups[0]["lr"])
        return values

    ours = run(fused_sched.optim, fused_sched.lr_scheduler)
    assert ours == pytest.approx(run(torch.optim, torch.optim.lr_scheduler), rel=PROMISE)


def test_schedule_dropped_mid_run_leaves_its_lr():
    both = Both(fused=False)
    both.step(3)
    expected = both.stock.opt.param_groups[0]["lr"]
    both.ours.scheduler = None
    gc.collect()
    assert both.ours.opt.param_groups[0]["lr"] == pytest.approx(expected, rel=PROMISE)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
@pytest.mark.parametrize("copying", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_go_on_by_themselves(copying, fused):
    both = Both(fused=fused)
    ours = both.ours
    twin = copying(SimpleNamespace(p=ours.params, opt=ours.opt, scheduler=ours.scheduler))
    ours.params, ours.opt, ours.scheduler = twin.p, twin.opt, twin.scheduler
    both.step(4)
    both.check()


# -- the object itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_it_is_no_cyclic_reference(fused):
    both = Both(fused=fused)
    if fused:
        both.ours.opt._ledger.mirror.host.schedules.fused.clear()  # held strongly, by design
    opt = weakref.ref(both.ours.opt)
    gc.collect()
    gc.disable()
    try:
        both.ours.scheduler = both.ours.opt = None
        assert opt() is None
    finally:
        gc.enable()


def test_one_optimizer_in_two_threads_raises():
    param = Parameter(torch.zeros(3_000_000))
    param.grad = torch.ones_like(param)
    opt = fused_sched.optim.SGD([param], lr=1.0)
    for _ in range(2):
        opt.step()
    raised: list[BaseException] = []
    made = [0, 0]

    def work(number: int) -> None:
        for _ in range(200):
            try:
                opt.step()
                made[number] += 1
            except RuntimeError as error:
                raised.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("one thread at a time" in str(error) for error in raised)
    assert param[0].item() == -(2 + sum(made))


# -- what a review found -------------------------------------------------------------------------


def lr_tensor(run: Run) -> None:
    run.opt.param_groups[0]["lr"] = torch.tensor(0.1)


def other_state_memory(run: Run) -> None:
    for entry in run.opt.state.values():
        for value in entry.values():
            value.data = value.data * 2


def base_lrs_in_place(run: Run) -> None:
    run.scheduler.base_lrs[0] = 0.7


@pytest.mark.parametrize("change", **named([lr_tensor, other_state_memory, base_lrs_in_place]))
def test_change_behind_the_back_reaches_the_next_step(change):
    both = Both(fused=False)
    both.do(change)
    both.step(3)
    check(both.ours.params, both.stock.params)


def test_groups_replaced_before_the_schedulers_step():
    both = Both(fused=False)
    both.do(plain_groups)
    both.do(lambda run: run.scheduler.step())
    both.step(2)
    both.check()


def test_callable_is_asked_at_each_step_after_prepare():
    factor = [1.0]
    opt = fused_sched.optim.SGD([Parameter(torch.ones(1))], lr=0.1)
    scheduler = fused_sched.lr_scheduler.LambdaLR(opt, lambda epoch: factor[0])
    opt.prepare()
    for _ in range(3):
        opt.param_groups[0]["params"][0].grad = torch.ones(1)
        opt.step()
        scheduler.step()
    factor[0] = 0.5
    scheduler.step()
    (device_state,) = opt._ledger.mirror.host.device_states.values()
    assert device_state.buffer.record[:, 0, 0].tolist() == [0.05, 0.05]


def test_negated_gradient_without_dimensions():
    params = [Parameter(torch.tensor(1.0)) for _ in range(2)]
    for param, optim in zip(params, (fused_sched.optim, torch.optim)):
        opt = optim.SGD([param], lr=0.1)
        for _ in range(3):
            param.grad = torch.tensor(1 + 2j).conj().imag
            opt.step()
    assert torch.equal(*params)


def test_full_step_after_cached_ones_reads_its_own_gradients():
    """Those that the last full step had sent, and the cached ones between had not."""
    param = Parameter(torch.zeros(3))
    first, second = torch.ones(3), torch.full((3,), 10.0)
    opt = fused_sched.optim.SGD([param], lr=1.0)
    param.grad = first
    for _ in range(2):
        opt.step()
    param.grad = second
    assert opt._cached.step(opt)
    param.grad = first
    handle = opt.register_step_pre_hook(lambda *_: None)
    opt.step()  # a full one
    handle.remove()
    assert param.tolist() == [-13.0] * 3


def test_optimizer_that_its_param_holds_is_collected():
    """Cached launches hold a second reference to an alias of each param, and not to the param."""

    def train() -> weakref.ref[Parameter]:
        param: Any = Parameter(torch.ones(3))
        param.opt = opt = fused_sched.optim.SGD([param], lr=0.1)
        for _ in range(4):
            param.grad = torch.ones(3)
            opt.step()
        assert opt._cached is not None
        return weakref.ref(param)

    gone = train()
    gc.collect()
    assert gone() is None
