"""``fuse`` of stock torch's pairs, and what our schedulers are to everything around them."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import (
    OF_TORCH,
    SCHEDULERS,
    Wave,
    chained,
    gradient,
    inverse_sqrt,
    make,
    plain_step,
    sequential,
)
from tests.test_fused_mode import closed_form, on_stock_base, stateful
from tests.training import stepped
from tests.twins import Twins, assert_same, our_side, record, stock_side, without_params

pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]

EXPONENTIAL = make("ExponentialLR", gamma=0.9)
LINEAR = make("LinearLR", start_factor=0.1, total_iters=6)
ONE_CYCLE = make("OneCycleLR", max_lr=0.1, total_steps=40)
COSINE = make("CosineAnnealingLR", T_max=20)


def ids(rows: list[tuple]) -> list[str]:
    return [row[0] for row in rows]


# -- stock pairs, mid-run ------------------------------------------------------------------------

CONVERTED = [
    ("exponential", EXPONENTIAL),
    ("one-cycle", ONE_CYCLE),
    ("restarts", make("CosineAnnealingWarmRestarts", T_0=4, T_mult=2)),
    ("lambda", make("LambdaLR", lr_lambda=inverse_sqrt)),
    ("cyclic", make("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=4)),
    ("sequential", sequential([5], LINEAR, COSINE)),
    ("chained", chained(LINEAR, EXPONENTIAL)),
    ("nested", sequential([6], chained(LINEAR, EXPONENTIAL), COSINE)),
    ("swa", make("SWALR", swa_lr=0.01)),
    ("third-party", on_stock_base(closed_form)),
    ("third-party-with-step", on_stock_base(stateful)),
]


def converted_twins(build: Any, name: str, steps: int) -> Twins:
    """Both sides are stock torch's for some steps; then ours is converted."""
    twins = Twins(build, name=name, fused=False)
    twins.ours = stock_side(build, name=name)
    twins.run(steps)
    pair = twins.ours.opt, twins.ours.scheduler
    assert fused_sched.fuse(*pair) == pair
    return twins


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("build", [b for _, b in CONVERTED], ids=ids(CONVERTED))
def test_converted_pair_goes_on_as_the_stock_pair(engine, build, name):
    twins = converted_twins(build, name, steps=4)
    assert isinstance(twins.ours.opt, getattr(fused_sched.optim, name))
    twins.run(8)
    twins.check_host()


@pytest.mark.parametrize(**stepped(OF_TORCH))
def test_every_optimizer_keeps_its_state(engine, row):
    sides = []
    for _ in range(2):
        params = [Parameter(torch.linspace(0.5, 1.5, 5)), Parameter(torch.ones(2, 3))]
        opt = row.build(torch.optim, params)
        sides.append((params, opt, torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)))

    def steps(first: int, last: int) -> None:
        for params, opt, scheduler in sides:
            for step in range(first, last):
                for param in params:
                    param.grad = gradient(param, step)
                opt.step()
                scheduler.step()

    steps(0, 3)
    fused_sched.fuse(*sides[1][1:])
    assert_same(sides[1][1].state_dict(), sides[0][1].state_dict())
    steps(3, 6)
    torch.testing.assert_close(sides[1][0], sides[0][0])
    assert_same(sides[1][2].state_dict(), sides[0][2].state_dict())


def test_plateau_is_converted_and_stays_explicit(engine):
    build = make("ReduceLROnPlateau", patience=1, factor=0.5)
    stock, ours = stock_side(build), stock_side(build)
    fused_sched.fuse(ours.opt, ours.scheduler, interval=1)
    assert type(ours.scheduler) is fused_sched.lr_scheduler.ReduceLROnPlateau
    assert not ours.opt._ledger.mirror.host.schedules.fused
    for metric in (1.0, 0.9, torch.tensor(0.95), torch.tensor(0.95), 0.95, 0.95):
        for side in (stock, ours):
            side.step()
            side.scheduler.step(metric)
    assert_same(ours.scheduler.state_dict(), stock.scheduler.state_dict())


def test_several_stock_schedulers_are_fused_one_by_one(engine):
    stock, ours = (stock_side(LINEAR, EXPONENTIAL) for _ in range(2))
    for scheduler in ours.schedulers:
        fused_sched.fuse(ours.opt, scheduler, interval=1)
    for _ in range(8):
        stock.step()
        ours.step()
        for scheduler in stock.schedulers:
            scheduler.step()
    assert_same(without_params(ours.opt.param_groups[0]), without_params(stock.opt.param_groups[0]))


def test_scheduler_of_torch_stays_usable_on_our_optimizer(engine):
    """An unconverted stock scheduler writes into the groups; its writes reach the device."""
    twins = Twins(EXPONENTIAL, fused=False)
    twins.ours.schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(twins.ours.opt, 9)]
    twins.stock.schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(twins.stock.opt, 9)]
    twins.run(7)


# -- what a conversion keeps, and refuses --------------------------------------------------------


def warned(action: Any) -> list[tuple[type, str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [(w.category, str(w.message)) for w in caught]


def test_order_warning_after_a_conversion_is_stocks(engine):
    stock, ours = stock_side(EXPONENTIAL), stock_side(EXPONENTIAL)
    fused_sched.fuse(ours.opt, ours.scheduler, interval=1)
    assert hasattr(ours.opt.step, "_wrapped_by_lr_sched")
    later = [
        COSINE(torch.optim.lr_scheduler, stock.opt),
        COSINE(fused_sched.lr_scheduler, ours.opt),
    ]
    messages = [warned(scheduler.step) for scheduler in later]
    assert messages[0] == messages[1] and len(messages[0]) == 1
    later = [torch.optim.lr_scheduler.StepLR(side.opt, 2) for side in (stock, ours)]
    for side in (stock, ours):
        side.step()
    assert [warned(scheduler.step) for scheduler in later] == [[], []]


def test_hooks_run_once_after_a_conversion(engine):
    side = stock_side(EXPONENTIAL)
    calls: list[str] = []
    side.opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    side.opt.register_step_post_hook(lambda *_: calls.append("post"))
    fused_sched.fuse(side.opt, side.scheduler, interval=1)
    side.step()
    assert calls == ["pre", "post"]


FOREIGN = [
    ("SparseAdam", lambda params: torch.optim.SparseAdam(params, lr=0.1)),
    ("LBFGS", lambda params: torch.optim.LBFGS(params, lr=0.1)),
    ("subclass", lambda params: type("MySGD", (torch.optim.SGD,), {})(params, lr=0.1)),
]


@pytest.mark.parametrize("build", [b for _, b in FOREIGN], ids=ids(FOREIGN))
def test_foreign_optimizer_is_refused_with_what_to_use(build):
    opt = build([Parameter(torch.ones(2))])
    kind = type(opt)
    scheduler = fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.9)
    with pytest.raises(TypeError, match=f"{kind.__name__} cannot carry.*SGD.*fused_sched.optim"):
        fused_sched.fuse(opt, scheduler, interval=1)
    assert type(opt) is kind


def test_scheduler_of_another_optimizer_is_refused():
    side, other = stock_side(EXPONENTIAL), stock_side(EXPONENTIAL)
    with pytest.raises(ValueError, match="ExponentialLR belongs to another optimizer; build it on"):
        fused_sched.fuse(side.opt, other.scheduler, interval=1)
    assert type(side.opt) is torch.optim.SGD
    assert type(other.scheduler) is torch.optim.lr_scheduler.ExponentialLR


@pytest.mark.parametrize("interval", [0, -1, 1.5, "2"])
def test_bad_interval_is_refused(interval):
    side = our_side(EXPONENTIAL)
    with pytest.raises(ValueError, match="Expected positive integer interval, but got"):
        fused_sched.fuse(side.opt, side.scheduler, interval=interval)


def test_not_a_scheduler_is_refused():
    with pytest.raises(TypeError, match="object is not an LRScheduler"):
        fused_sched.fuse(our_side().opt, object(), interval=1)


def test_bad_horizon_is_refused():
    opt = our_side().opt
    with pytest.raises(ValueError, match="Expected positive integer horizon, but got 0"):
        fused_sched.lr_scheduler.LambdaLR(opt, inverse_sqrt, horizon=0)
    scheduler = fused_sched.lr_scheduler.ExponentialLR(opt, 0.9)
    with pytest.raises(ValueError, match="Expected positive integer horizon, but got -1"):
        fused_sched.lr_scheduler.ChainedScheduler([scheduler], horizon=-1)


def test_step_replaced_by_somebody_is_not_lost():
    side = stock_side(EXPONENTIAL)
    side.opt.step = lambda: None
    with pytest.raises(RuntimeError, match="replaced by a function of your own"):
        fused_sched.fuse(side.opt, side.scheduler, interval=1)


# -- copies --------------------------------------------------------------------------------------

COPIED = [row for row in CONVERTED if row[0] not in ("third-party", "third-party-with-step")]


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def by_torch_save(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copying", [copy.deepcopy, by_pickle, by_torch_save])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("build", [b for _, b in COPIED], ids=ids(COPIED))
def test_copied_pair_goes_on_by_itself(build, fused, copying, launch_engine):
    twins = Twins(build, fused=fused)
    twins.run(3)
    side = twins.ours
    params, opt, scheduler = copying((side.params, side.opt, side.scheduler))
    twins.run(1)
    other = our_side()
    other.params, other.opt, other.schedulers = params, opt, [scheduler]
    other.step()
    if not fused:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's: the step patch is not copied
            scheduler.step()
    assert torch.equal(record(opt), record(side.opt))
    assert_same(scheduler.state_dict(), side.scheduler.state_dict())
    torch.testing.assert_close(params, side.params)


@pytest.mark.parametrize("copying", [copy.deepcopy, by_torch_save])
def test_converted_third_party_class_is_copied(copying):
    side = stock_side(lambda module, opt: ThirdParty(opt))
    fused_sched.fuse(side.opt, side.scheduler, interval=1)
    side.step()
    opt, scheduler = copying((side.opt, side.scheduler))
    assert isinstance(scheduler, ThirdParty) and scheduler.optimizer is opt
    assert_same(scheduler.state_dict(), side.scheduler.state_dict())


class ThirdParty(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        return [lr * 0.5**self.last_epoch for lr in self.base_lrs]


# -- beside the device ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", SCHEDULERS, ids=lambda case: case.id)
def test_state_dict_has_torchs_keys_and_loads_both_ways(case):
    stock, ours = stock_side(case.build), our_side(case.build)
    for step in range(1, case.horizon(5) + 1):
        for side in (stock, ours):
            side.step()
            case.advance(side.scheduler, step)
    mine, theirs = ours.scheduler.state_dict(), stock.scheduler.state_dict()
    assert list(mine) == list(theirs)
    assert_same(mine, theirs)
    buffer = io.BytesIO()
    torch.save(mine, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    fresh_stock, fresh = stock_side(case.build), our_side(case.build)
    fresh_stock.scheduler.load_state_dict(loaded)
    fresh.scheduler.load_state_dict(copy.deepcopy(theirs))
    assert_same(fresh.scheduler.state_dict(), fresh_stock.scheduler.state_dict())


@pytest.mark.parametrize("case", SCHEDULERS, ids=lambda case: case.id)
def test_schedulers_on_a_foreign_optimizer_do_as_torchs(case):
    stock, ours = (torch_pair(case.build, lib) for lib in STOCK_AND_OURS)
    for step in range(1, case.horizon(12) + 1):
        for opt, scheduler in (stock, ours):
            opt.step()
            case.advance(scheduler, step)
        assert ours[1].get_last_lr() == stock[1].get_last_lr()
        for mine, theirs in zip(ours[0].param_groups, stock[0].param_groups):
            assert without_params(mine) == without_params(theirs)


STOCK_AND_OURS = (torch.optim.lr_scheduler, fused_sched.lr_scheduler)


def torch_pair(build: Any, lib: Any) -> tuple[Any, Any]:
    params = [{"params": [Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.02, 0.4)]
    opt = torch.optim.RMSprop(params, momentum=0.9)
    return opt, build(lib, opt)


SCHEDULED = [case for case in SCHEDULERS if case.advance is plain_step]


@pytest.mark.parametrize("case", SCHEDULED, ids=lambda case: case.id)
def test_explicit_scheduler_is_no_cyclic_reference(case, launch_engine):
    side = our_side(case.build)
    side.opt.prepare()
    reference = weakref.ref(side.scheduler)
    gc.disable()
    try:
        side.schedulers.clear()
        assert reference() is None
        opt = weakref.ref(side.opt)
        del side
        assert opt() is None
    finally:
        gc.enable()


def test_optimizer_steps_on_after_its_scheduler_is_gone(launch_engine):
    side = our_side(EXPONENTIAL)
    side.opt.prepare()
    side.step()
    side.schedulers.clear()
    side.opt.param_groups[0]["lr"] = 0.3
    side.opt.prepare()
    side.step()
    assert record(side.opt)[0, 0] == 0.3


def test_callable_objects_are_not_disturbed_by_running_ahead(engine):
    class Counting(Wave):
        calls = 0

        def __call__(self, epoch):
            self.calls += 1
            return super().__call__(epoch)

    call = Counting()
    side = our_side(make("LambdaLR", lr_lambda=call))
    fused_sched.fuse(side.opt, side.scheduler, interval=1)
    assert call.calls == 3  # torch's own first step, once per group


def test_bound_method_is_not_copied_with_its_owner(engine):
    class Owner:
        def __deepcopy__(self, memo):
            raise AssertionError("a model may be large")

        def factor(self, epoch):
            return 0.9**epoch

    owner = Owner()
    twins = Twins(make("LambdaLR", lr_lambda=owner.factor))
    twins.run(3)
    nested = Twins(sequential([2], LINEAR, make("LambdaLR", lr_lambda=owner.factor)))
    nested.run(4)
