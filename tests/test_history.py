"""``scheduler.history()``: what the launches used, against what stock torch's groups said."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.runtime import device_state
from tests.cases import PROMISE, inverse_sqrt
from tests.twins import RATES

STEPS = 12

BUILDS = {
    "cosine": lambda module, opt: module.CosineAnnealingLR(opt, T_max=10),
    "one-cycle": lambda module, opt: module.OneCycleLR(opt, max_lr=0.5, total_steps=STEPS + 1),
    "tabulated": lambda module, opt: module.LambdaLR(opt, inverse_sqrt),
    "sequential": lambda module, opt: module.SequentialLR(
        opt, [module.LinearLR(opt, total_iters=3), module.ExponentialLR(opt, 0.9)], [4]
    ),
}


class Training:
    """Ours or stock torch's, on a param in each of three groups."""

    def __init__(self, build: Any, name: str = "SGD", ours: bool = True, fuse: bool = False):
        optim = fused_sched.optim if ours else torch.optim
        schedulers = fused_sched.lr_scheduler if ours else torch.optim.lr_scheduler
        groups = [{"params": [Parameter(torch.ones(3))], "lr": lr} for lr in RATES]
        momentum = {"momentum": 0.9} if name == "SGD" else {}
        self.opt: Any = getattr(optim, name)(groups, **momentum)
        self.scheduler = build(schedulers, self.opt)
        self.fused = fuse
        if fuse:
            fused_sched.fuse(self.opt, self.scheduler, interval=1)
        self.used: list[list[tuple[float, float]]] = []

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            groups = self.opt.param_groups
            for group in groups:
                group["params"][0].grad = torch.ones(3)
            if type(self.opt).__module__.startswith("torch."):
                self.used.append([(g["lr"], momentum(g)) for g in groups])
            self.opt.step()
            if not self.fused:
                self.scheduler.step()


def momentum(group: Any) -> float:
    return group["momentum"] if "momentum" in group else group["betas"][0]


def assert_kept(drained: dict[str, Any], stock: Training, first: int, last: int) -> None:
    assert drained["step"].tolist() == list(range(first, last))
    expected = torch.tensor(stock.used[first:last], dtype=torch.float64)
    allowed = PROMISE * max(RATES)
    torch.testing.assert_close(drained["lr"], expected[..., 0], rtol=0, atol=allowed)
    for name in drained.keys() - {"step", "lr"}:
        torch.testing.assert_close(drained[name], expected[..., 1], rtol=PROMISE, atol=0)


@pytest.fixture(params=[False, True], ids=["explicit", "fused"])
def fuse(request):
    return request.param


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_each_step_is_kept(engine, fuse, name, build):
    ours, stock = Training(build, name, fuse=fuse), Training(build, name, ours=False)
    history = ours.scheduler.history(100)
    for part, total in ((5, 5), (1, 6), (6, 12)):
        ours.step(part)
        stock.step(part)
        assert_kept(history.drain(), stock, total - part, total)
    cycled = {"SGD": "momentum", "AdamW": "beta1"}[name]
    assert history.names == (("lr", cycled) if build is BUILDS["one-cycle"] else ("lr",))
    assert history.missed == 0
    assert history.drain()["lr"].shape == (0, 3)


def test_the_last_steps_stay(engine, fuse):
    build = BUILDS["cosine"]
    ours, stock = Training(build, fuse=fuse), Training(build, ours=False)
    history = ours.scheduler.history(4)
    for one in (ours, stock):
        one.step(11)
    assert_kept(history.drain(), stock, 7, 11)
    assert history.missed == 7
    ours.step()
    stock.step()
    assert_kept(history.drain(), stock, 11, 12)


def test_it_begins_and_ends_in_the_middle(engine, fuse):
    build = BUILDS["cosine"]
    ours, stock = Training(build, fuse=fuse), Training(build, ours=False)
    for one in (ours, stock):
        one.step(3)
    history = ours.scheduler.history(10)
    stock.used.clear()
    for one in (ours, stock):
        one.step(4)
    history.close()
    for one in (ours, stock):
        one.step(3)
    assert_kept(history.drain(), stock, 0, 4)
    assert ours.opt.param_groups[0]["lr"] == pytest.approx(
        stock.opt.param_groups[0]["lr"], rel=PROMISE
    )


def test_a_group_added_later_is_kept_from_then_on(engine, fuse):
    ours = Training(BUILDS["cosine"], fuse=fuse)
    history = ours.scheduler.history(10)
    ours.step(2)
    late = {"params": [Parameter(torch.ones(3))], "lr": 0.3, "initial_lr": 0.3}
    ours.opt.add_param_group(late)
    ours.scheduler.base_lrs.append(0.3)
    ours.step(2)
    drained = history.drain()
    assert drained["lr"].shape == (4, 4)
    assert drained["lr"].isnan().tolist() == [[False] * 3 + [True]] * 2 + [[False] * 4] * 2
    assert drained["lr"][2, 3] == 0.3


def test_skipped_steps_are_not_kept(launch_engine, fuse):
    ours = Training(BUILDS["cosine"], fuse=fuse)
    history = ours.scheduler.history(10)
    found_inf = torch.zeros(())
    ours.opt.grad_scale, ours.opt.found_inf = torch.ones(()), found_inf
    for overflow in (0, 1, 1, 0, 0):
        found_inf.fill_(overflow)
        ours.step()
    assert history.drain()["step"].tolist() == [0, 1, 2]


def test_two_histories_of_one_optimizer(launch_engine):
    ours = Training(BUILDS["one-cycle"], fuse=True)
    long, short = ours.scheduler.history(10), ours.scheduler.history(2)
    ours.step(5)
    values = long.drain()
    last = short.drain()
    assert all(torch.equal(values[name][-2:], last[name]) for name in ("step", "lr", "momentum"))


def test_another_engine_goes_on(fuse):
    build = BUILDS["cosine"]
    ours, stock = Training(build, fuse=fuse), Training(build, ours=False)
    history = ours.scheduler.history(20)
    for engine in ("native", "eager", "native"):
        with fused_sched.use_engine(engine):
            ours.step(3)
        stock.step(3)
    assert_kept(history.drain(), stock, 0, 9)


def test_copies_have_none():
    ours = Training(BUILDS["cosine"], fuse=True)
    ours.scheduler.history(10)
    twin = copy.deepcopy(ours.opt)
    assert not twin._ledger.mirror.host.schedules.histories


@pytest.mark.parametrize("capacity", [0, -1, 2.5, None, True])
def test_bad_capacity_is_refused(capacity):
    scheduler = Training(BUILDS["cosine"]).scheduler
    with pytest.raises(ValueError, match="Expected positive integer capacity, but got"):
        scheduler.history(capacity)


def test_a_foreign_optimizer_has_no_launch():
    opt = torch.optim.SGD([Parameter(torch.ones(1))])
    scheduler = fused_sched.lr_scheduler.StepLR(opt, 2)
    with pytest.raises(TypeError, match=r"SGD has no launch .* optimizer of fused_sched\.optim"):
        scheduler.history(10)


# -- what a review found -------------------------------------------------------------------------


def trained(fuse: bool, name: str = "SGD", build: Any = BUILDS["cosine"]) -> tuple[Training, Any]:
    ours, stock = Training(build, name, fuse=fuse), Training(build, name, ours=False)
    return ours, stock


def assert_as_stock(ours: Training, stock: Training) -> None:
    for mine, theirs in zip(ours.opt.param_groups, stock.opt.param_groups, strict=True):
        torch.testing.assert_close(mine["params"], theirs["params"])
        assert mine["lr"] == pytest.approx(theirs["lr"], rel=PROMISE)
    assert ours.scheduler.last_epoch == stock.scheduler.last_epoch


def test_closing_does_not_rewind_the_schedule(engine, fuse):
    ours, stock = trained(fuse)
    history = ours.scheduler.history(4)
    for one in (ours, stock):
        one.step(4)
    history.close()
    history.close()
    for one in (ours, stock):
        one.step(2)
    assert_as_stock(ours, stock)


def test_closing_after_a_skipped_step_keeps_the_schedule(launch_engine):
    ours, stock = trained(fuse=True)
    history = ours.scheduler.history(4)
    ours.opt.grad_scale, ours.opt.found_inf = torch.ones(()), torch.zeros(())
    for overflow in (0, 1, 0, 0):
        ours.opt.found_inf.fill_(overflow)
        ours.step()
    del ours.opt.grad_scale, ours.opt.found_inf
    history.close()
    ours.step()
    stock.step(4)
    assert_as_stock(ours, stock)


def test_a_ring_that_cannot_be_allocated_changes_nothing(launch_engine, fuse, monkeypatch):
    ours, stock = trained(fuse)
    for one in (ours, stock):
        one.step(3)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch, "zeros", out_of_memory)
        ours.scheduler.history(10)
    assert not ours.opt._ledger.mirror.host.schedules.histories
    for one in (ours, stock):
        one.step(3)
    assert_as_stock(ours, stock)


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


def test_a_chain_keeps_what_its_schedulers_move(engine):
    opt = fused_sched.optim.SGD([Parameter(torch.ones(1))], lr=0.1, weight_decay=0.5)
    decay = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5, hyper="weight_decay")
    chain = fused_sched.lr_scheduler.ChainedScheduler([decay])
    assert "weight_decay" in chain.history(8).names


def test_a_history_keeps_no_param_alive(launch_engine):
    ours, _ = trained(fuse=True)
    history = ours.scheduler.history(8)
    ours.step(3)
    param = weakref.ref(ours.opt.param_groups[0]["params"][0])
    del ours
    gc.collect()
    assert param() is None
    with pytest.raises(RuntimeError, match="optimizer of this history is gone"):
        history.drain()


def test_a_removed_group_loses_no_step(engine):
    ours, _ = trained(fuse=False)
    history = ours.scheduler.history(8)
    ours.step(2)
    ours.opt.param_groups.pop()
    ours.scheduler.base_lrs.pop()
    ours.step(1)
    kept = history.drain()["lr"]
    assert kept.shape == (3, 3)
    assert kept[2].isnan().tolist() == [False, False, True]


def test_a_masked_batch_at_lr_0_is_a_step(engine):
    """SGD without momentum never has state, which is no sign of a checkpoint's probe."""
    optim, schedulers = fused_sched.optim, fused_sched.lr_scheduler
    param = Parameter(torch.ones(3))
    opt = optim.SGD([param], lr=1.0)
    schedule = schedulers.LinearLR(opt, 0.1, total_iters=10)
    fused_sched.fuse(opt, schedule, interval=1)
    history = schedule.history(3)
    for rate in (None, None, None, None, 0.0):
        if rate is not None:
            opt.param_groups[0]["lr"] = rate
        param.grad = torch.zeros(3)
        opt.step()
    assert history.drain()["lr"][:, 0].tolist()[-1] == 0.0
    assert schedule.last_epoch == 5


def test_the_probe_of_a_checkpoint_is_no_entry(launch_engine):
    ours, stock = trained(fuse=True)
    history = ours.scheduler.history(8)
    rates = [group["lr"] for group in ours.opt.param_groups]
    for group in ours.opt.param_groups:
        group["params"][0].grad = torch.zeros(3)
        group["lr"] = 0.0
    ours.opt.step()
    for group, rate in zip(ours.opt.param_groups, rates, strict=True):
        group["lr"] = rate
    for one in (ours, stock):
        one.step(3)
    assert_kept(history.drain(), stock, 0, 3)


@pytest.mark.parametrize("call", ["history", "close", "drain"])
def test_nothing_of_it_runs_inside_a_capture(call, monkeypatch):
    ours, _ = trained(fuse=True)
    history = ours.scheduler.history(8)
    ours.step()
    monkeypatch.setattr(device_state, "capturing", lambda device=None: True)
    with pytest.raises(RuntimeError, match="cannot run while a CUDA graph is being captured"):
        ours.scheduler.history(8) if call == "history" else getattr(history, call)()
