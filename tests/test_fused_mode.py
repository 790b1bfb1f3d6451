"""Explicit and fused mode, step by step: the device's record equals stock torch's floats."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

import fused_sched
from tests.cases import (
    SCHEDULERS,
    Build,
    Wave,
    chained,
    halve_every_cycle,
    inverse_sqrt,
    make,
    plain_step,
    sequential,
    slower_on_odd,
)
from tests.recording import capturing
from tests.twins import Twins, assert_same, our_side, record, stock_side

# A SequentialLR starts its children before any optimizer step; nested composites do it again.
pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]


@pytest.fixture(params=["explicit", "fused"])
def mode(request):
    return request.param


FUSIBLE = [case for case in SCHEDULERS if case.advance is plain_step]
ONE_OF_EACH = {case.name: case for case in reversed(FUSIBLE)}.values()

EXPONENTIAL = make("ExponentialLR", gamma=0.9)
COSINE = make("CosineAnnealingLR", T_max=20)
LINEAR = make("LinearLR", start_factor=0.1, total_iters=6)
LAMBDA = make("LambdaLR", lr_lambda=inverse_sqrt)


def case_id(case: Any) -> str:
    return case.id


# -- every class, with edits in between ----------------------------------------------------------


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=case_id)
def test_record_equals_stock_after_each_step_with_edits(engine, mode, case):
    twins = Twins(case.build, fused=mode == "fused")
    twins.run(9)
    for side in twins.sides():
        side.opt.param_groups[0]["lr"] *= 0.5
    twins.run(3)
    for side in twins.sides():
        side.opt.param_groups[1].update(momentum=0.8, weight_decay=0.1)
        side.opt.param_groups[2]["lr"] = 0.3
    twins.run(3)
    twins.check_host()
    twins.run(6 if engine == "triton" else 25)  # a step in the interpreter takes 30 of native's
    twins.check_host()


@pytest.mark.parametrize("case", FUSIBLE, ids=case_id)
def test_every_row_fused_on_the_eager_engine(case):
    with fused_sched.use_engine("eager"):
        twins = Twins(case.build, name="Adam")
        twins.run(case.horizon(40))
        twins.check_host()


def test_betas_edited_between_steps(engine, mode):
    build = make("OneCycleLR", max_lr=0.1, total_steps=40)
    twins = Twins(build, name="Adam", fused=mode == "fused")
    for _ in range(3):
        twins.run(3)
        for side in twins.sides():
            group = side.opt.param_groups[1]
            group["betas"] = (group["betas"][0], group["betas"][1] * 0.99)
    twins.check_host()


# -- attributes changed while it runs ------------------------------------------------------------

CHANGES = [
    (make("ExponentialLR", gamma=0.9), {"gamma": 0.5}),
    (make("StepLR", step_size=3), {"step_size": 2, "gamma": 0.5}),
    (make("MultiStepLR", milestones=[3, 9]), {"gamma": 0.5}),
    (make("LinearLR", start_factor=0.1, total_iters=6), {"total_iters": 12}),
    (make("PolynomialLR", total_iters=20), {"power": 2.0}),
    (make("CosineAnnealingLR", T_max=20), {"eta_min": 0.05}),
    (make("CosineAnnealingWarmRestarts", T_0=4), {"T_mult": 2}),
    (make("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=4), {"max_lrs": [0.2, 0.3, 0.4]}),
    (
        make("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=4, mode="exp_range", gamma=0.9),
        {"gamma": 0.5},
    ),
    (
        make("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=4, mode="triangular2"),
        {"scale_mode": "iterations"},
    ),
    (make("LambdaLR", lr_lambda=inverse_sqrt), {"base_lrs": [1.0, 2.0, 3.0]}),
    (make("LambdaLR", lr_lambda=inverse_sqrt), {"lr_lambdas": [slower_on_odd] * 3}),
    (make("LambdaLR", lr_lambda=inverse_sqrt), {"last_epoch": 2}),
]


@pytest.mark.parametrize(
    ("build", "change"),
    CHANGES,
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_changed_attribute_takes_effect_at_the_next_step(engine, mode, build, change):
    twins = Twins(build, fused=mode == "fused")
    twins.run(5)
    for side in twins.sides():
        for name, value in change.items():
            setattr(side.scheduler, name, value)
    twins.run(12)
    twins.check_host()


def test_changed_child_of_a_composite_takes_effect(engine, mode):
    twins = Twins(sequential([4], LINEAR, EXPONENTIAL), fused=mode == "fused")
    twins.run(6)
    for side in twins.sides():
        side.scheduler._schedulers[1].gamma = 0.5
    twins.run(4)
    twins.check_host()


def test_changed_child_of_a_tabulated_composite_takes_effect(engine, mode):
    build = sequential([4], chained(LINEAR), EXPONENTIAL)
    twins = Twins(build, fused=mode == "fused")
    twins.run(6)
    for side in twins.sides():
        side.scheduler._schedulers[1].gamma = 0.5
    twins.run(4)
    twins.check_host()


# -- checkpoints ---------------------------------------------------------------------------------

CHECKPOINTED = [
    EXPONENTIAL,
    COSINE,
    make("CosineAnnealingWarmRestarts", T_0=4, T_mult=2),
    make("OneCycleLR", max_lr=0.1, total_steps=60),
    make("LambdaLR", lr_lambda=Wave()),
    sequential([5], LINEAR, COSINE),
    chained(LINEAR, EXPONENTIAL),
]
CHECKPOINT_IDS = ["Exponential", "Cosine", "WarmRestarts", "OneCycle", "Lambda", "Seq", "Chained"]


@pytest.mark.parametrize("build", CHECKPOINTED, ids=CHECKPOINT_IDS)
def test_checkpoint_loaded_mid_run_goes_on_as_stock(engine, mode, build):
    twins = Twins(build, fused=mode == "fused")
    twins.run(7)
    saved = [
        copy.deepcopy((side.opt.state_dict(), side.scheduler.state_dict(), side.params))
        for side in twins.sides()
    ]
    twins.run(6)
    stock, ours = saved
    for side, (opt, scheduler, params) in ((twins.stock, ours), (twins.ours, stock)):  # crosswise
        with torch.no_grad():
            for param, value in zip(side.params, params):
                param.copy_(value)
        side.opt.load_state_dict(opt)
        side.scheduler.load_state_dict(scheduler)
    twins.run(6)
    twins.check_host()


# -- cadence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("answering", [False, True])
@pytest.mark.parametrize(
    "build", [EXPONENTIAL, LAMBDA, sequential([3], LINEAR, COSINE)], ids=["exp", "lambda", "seq"]
)
def test_interval_of_three_steps(engine, build, answering):
    twins = Twins(build, interval=3, answering=answering)
    twins.run(10)
    for side in twins.sides():
        side.opt.param_groups[0]["lr"] = 0.2
    twins.run(8)
    twins.check_host()


def test_interval_changed_keeps_the_order_of_the_schedules(engine):
    side = our_side(EXPONENTIAL, LINEAR)
    for scheduler in side.schedulers:
        fused_sched.fuse(side.opt, scheduler, interval=1)
    fused_sched.fuse(side.opt, side.scheduler, interval=2)
    fused = side.opt._ledger.mirror.host.schedules.fused
    assert [one.scheduler for one in fused] == side.schedulers
    assert [one.interval for one in fused] == [2, 1]


def test_calls_beside_an_interval_do_nothing_and_warn_once(engine):
    twins = Twins(EXPONENTIAL, interval=2)
    twins.run(10)
    expected = (
        r"ExponentialLR.step\(\) was called 1 times in 10 optimizer steps, .*interval=2: it "
        "advances by itself.*Drop the call, or fuse without an interval"
    )
    with pytest.warns(UserWarning, match=expected):
        twins.ours.scheduler.step()
    for _ in range(5):
        twins.step()
        twins.ours.scheduler.step()  # a second warning would be an error
    twins.check_host()


def test_calls_govern_beside_a_metric_on_the_device(engine):
    """The host does not know lr then: it asks the device at the next call."""
    side, stock = our_side(EXPONENTIAL, make("ReduceLROnPlateau")), stock_side(EXPONENTIAL)
    fused_sched.fuse(side.opt, side.scheduler)
    for step in range(8):
        for one in (side, stock):
            one.step()
        side.schedulers[1].step(torch.tensor(1.0 / (step + 1)))
        for one in (side, stock):
            one.scheduler.step()
        assert_same(side.scheduler.last_epoch, step + 1)
        assert_same(side.scheduler.get_last_lr(), stock.scheduler.get_last_lr())


# -- several schedulers, composites --------------------------------------------------------------

TOGETHER = [
    ("two", [LINEAR, EXPONENTIAL]),
    ("order", [LAMBDA, EXPONENTIAL]),
    ("other-order", [EXPONENTIAL, LAMBDA]),
    ("three", [COSINE, EXPONENTIAL, make("MultiplicativeLR", lr_lambda=slower_on_odd)]),
    ("momentum", [make("OneCycleLR", max_lr=0.1, total_steps=40), EXPONENTIAL]),
]


@pytest.mark.parametrize("builds", [b for _, b in TOGETHER], ids=[name for name, _ in TOGETHER])
def test_several_schedulers_on_one_optimizer(engine, mode, builds):
    twins = Twins(*builds, fused=mode == "fused")
    twins.run(12)
    twins.check_host()


def test_one_scheduler_fused_and_one_explicit(engine):
    twins = Twins(EXPONENTIAL, LINEAR, fused=False)
    fused_sched.fuse(twins.ours.opt, twins.ours.scheduler)
    twins.run(10)  # the explicit one moves lr on the host, between two launches
    twins.check_host()


NESTED = [
    ("chained-in-sequential", sequential([5], chained(LINEAR, EXPONENTIAL), EXPONENTIAL)),
    ("sequential-in-sequential", sequential([6], sequential([3], LINEAR, EXPONENTIAL), COSINE)),
    ("sequential-in-chained", chained(sequential([3], LINEAR, COSINE), EXPONENTIAL)),
    ("chained-in-chained", chained(chained(LINEAR, EXPONENTIAL), COSINE)),
    (
        "scale_fn-in-sequential",
        sequential(
            [3],
            LINEAR,
            make(
                "CyclicLR",
                base_lr=0.01,
                max_lr=0.1,
                step_size_up=4,
                scale_fn=halve_every_cycle,
                scale_mode="cycle",
            ),
        ),
    ),
    ("no-iters-in-sequential", sequential([3], make("LinearLR", total_iters=0), EXPONENTIAL)),
    (
        "one-cycle-ends-in-sequential",
        sequential([9], make("OneCycleLR", max_lr=0.1, total_steps=9), EXPONENTIAL),
    ),
]


@pytest.mark.parametrize("build", [b for _, b in NESTED], ids=[name for name, _ in NESTED])
def test_nested_composites(engine, mode, build):
    twins = Twins(build, fused=mode == "fused")
    twins.run(8)
    for side in twins.sides():
        side.opt.param_groups[0]["lr"] = 0.25
    twins.run(10)
    twins.check_host()


@pytest.mark.parametrize("build", [b for _, b in NESTED], ids=[name for name, _ in NESTED])
def test_nested_composites_come_back_from_the_device(build, launch_engine):
    twins = Twins(build)
    twins.run(5)
    for steps in (3, 4):
        twins.ours.opt._ledger.mirror.account.values_unknown = (
            True  # as after a metric that stays on the device
        )
        twins.check_host()
        twins.run(steps)
    twins.ours.opt._ledger.mirror.account.note_unknown()
    twins.check_host()


def test_child_of_a_composite_is_not_fused_by_itself():
    side = our_side(sequential([3], LINEAR, EXPONENTIAL))
    with pytest.raises(ValueError, match="stepped by another scheduler; fuse that one instead"):
        fused_sched.fuse(side.opt, side.scheduler._schedulers[0], interval=1)


RECURSIVE_TABLE = sequential([5], chained(LINEAR), EXPONENTIAL)


def test_recursive_table_beside_another_schedule_of_lr_trains_eagerly(engine):
    twins = Twins(RECURSIVE_TABLE, EXPONENTIAL, answering=True)
    twins.run(9)
    twins.check_host()


def test_recursive_table_beside_another_schedule_of_lr_is_refused_in_a_graph(launch_engine):
    side = our_side(RECURSIVE_TABLE, EXPONENTIAL)
    side.opt._ledger.mirror.host.schedules.tables = True  # as for CUDA params
    for scheduler in side.schedulers:
        fused_sched.fuse(side.opt, scheduler)
    side.step()
    with capturing(), pytest.raises(RuntimeError, match="cannot share lr with another schedule"):
        side.step()


# -- schedules that end --------------------------------------------------------------------------

SHORT = [
    ("lambda", lambda m, opt: m.LambdaLR(opt, inverse_sqrt, **_horizon(m))),
    ("multiplicative", lambda m, opt: m.MultiplicativeLR(opt, slower_on_odd, **_horizon(m))),
    (
        "nested",
        lambda m, opt: m.SequentialLR(
            opt, [chained(LINEAR)(m, opt), EXPONENTIAL(m, opt)], [4], **_horizon(m)
        ),
    ),
]


def _horizon(module: Any) -> dict[str, int]:
    return {"horizon": 5} if module is fused_sched.lr_scheduler else {}


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("build", [b for _, b in SHORT], ids=[name for name, _ in SHORT])
def test_table_is_renewed_while_training_is_eager(engine, build, interval):
    twins = Twins(build, interval=interval)
    twins.run(17 * interval)
    twins.check_host()


@pytest.mark.parametrize("build", [b for _, b in SHORT], ids=[name for name, _ in SHORT])
def test_table_that_ran_out_in_a_graph_holds_and_says_so(build, launch_engine):
    twins = Twins(build, tables=True)
    twins.run(5)
    # The steps from here on stand for replays, of a graph that nothing tells of.
    twins.ours.opt._ledger.mirror.account.note_capture(None)
    for _ in range(5):
        twins.ours.step()
    held = record(twins.ours.opt)
    for _ in range(3):
        twins.ours.step()
    assert torch.equal(record(twins.ours.opt), held)
    with pytest.raises(RuntimeError, match="horizon=<total steps>"):
        _ = twins.ours.opt.param_groups[0]["lr"]
    assert twins.ours.opt.param_groups[0]["lr"] == held[0, 0]


def snapshot(side: Any) -> Any:
    return copy.deepcopy(
        (side.params, side.opt.state_dict(), [s.state_dict() for s in side.schedulers])
    )


ENDING = [
    ("one-cycle", make("OneCycleLR", max_lr=0.1, total_steps=4), "Tried to step 5 times"),
    ("sequential", sequential([2], LINEAR, make("OneCycleLR", max_lr=0.1, total_steps=4)), "Tried"),
]


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize(
    ("build", "message"), [row[1:] for row in ENDING], ids=[row[0] for row in ENDING]
)
def test_end_of_a_schedule_raises_as_torch_and_changes_nothing(engine, build, message, interval):
    twins = Twins(build, interval=interval)
    with pytest.raises((ValueError, ZeroDivisionError), match=message) as stock:
        while True:
            twins.stock.step()
            twins.steps += 1
            if twins.steps % interval == 0:
                twins.stock.scheduler.step()
    with pytest.raises(stock.type, match=message):
        for _ in range(twins.steps - 1):
            twins.ours.step()
        before = snapshot(twins.ours)
        twins.ours.step()
    assert_same(snapshot(twins.ours), before, tolerance=0.0)


@pytest.mark.parametrize("interval", [1, 3])
def test_schedule_that_the_host_steps_raises_where_torch_does(engine, interval):
    twins = Twins(make("ConstantLR", factor=0, total_iters=5), interval=interval)
    twins.run(5 * interval - 1)
    for side in twins.sides():
        with pytest.raises(ZeroDivisionError, match="float division by zero"):
            side.step()
            side.scheduler.step()
    torch.testing.assert_close(twins.ours.params, twins.stock.params)


def test_schedule_that_ends_at_once_is_refused_with_an_interval(engine):
    side = our_side(make("StepLR", step_size=0))
    with pytest.raises(ZeroDivisionError, match="modulo by zero"):
        fused_sched.fuse(side.opt, side.scheduler, interval=1)
    side.step()  # and nothing is fused


def test_schedule_that_ends_at_once_raises_at_its_first_call(engine):
    side = our_side(make("StepLR", step_size=0))
    fused_sched.fuse(side.opt, side.scheduler)
    side.step()
    with pytest.raises(ZeroDivisionError, match="modulo by zero"):
        side.scheduler.step()


# -- classes of others ---------------------------------------------------------------------------


def closed_form(base: type) -> type:
    class HalvingLR(base):
        def get_lr(self):
            return [lr * 0.5 ** (self.last_epoch // 3) for lr in self.base_lrs]

    return HalvingLR


def recursive(base: type) -> type:
    class ShrinkingLR(base):
        def get_lr(self):
            return [group["lr"] * 0.9 for group in self.optimizer.param_groups]

    return ShrinkingLR


def stateful(base: type) -> type:
    class CountingLR(base):
        """Keeps a count of its own and overrides step(), as GradualWarmupScheduler does."""

        calls = 0

        def get_lr(self):
            return [lr / (1 + self.calls) for lr in self.base_lrs]

        def step(self, epoch=None):
            self.calls += 1
            super().step(epoch)

    return CountingLR


def on_stock_base(make_class: Callable[[type], type], *arguments: Any) -> Build:
    """A third party's class: the same one on both sides."""
    cls = make_class(LRScheduler)
    return lambda module, opt: cls(opt, *arguments)


def on_own_base(make_class: Callable[[type], type], name: str, **arguments: Any) -> Build:
    """A user's subclass of one of the classes: torch's on one side, ours on the other."""
    return lambda module, opt: make_class(getattr(module, name))(opt, **arguments)


OTHERS = [
    ("third-party", on_stock_base(closed_form)),
    ("third-party-stateful", on_stock_base(stateful)),
    ("subclass", on_own_base(closed_form, "ExponentialLR", gamma=0.9)),
    ("subclass-of-cosine", on_own_base(closed_form, "CosineAnnealingLR", T_max=10)),
    ("in-sequential", sequential([3], LINEAR, on_stock_base(closed_form))),
    ("in-chained", chained(on_stock_base(closed_form), EXPONENTIAL)),
]


@pytest.mark.parametrize("build", [b for _, b in OTHERS], ids=[name for name, _ in OTHERS])
def test_classes_of_others_are_tabulated(engine, mode, build):
    twins = Twins(build, fused=mode == "fused")
    twins.run(5)
    for side in twins.sides():
        side.opt.param_groups[0]["lr"] *= 0.5
    twins.run(7)
    twins.check_host()


def test_stateful_class_comes_back_from_the_device(launch_engine):
    twins = Twins(on_stock_base(stateful))
    twins.run(5)
    twins.ours.opt._ledger.mirror.account.note_unknown()
    twins.check_host()
    assert twins.ours.scheduler.calls == twins.stock.scheduler.calls


RECURSIVE = [
    ("third-party", on_stock_base(recursive)),
    ("subclass", on_own_base(recursive, "StepLR", step_size=2)),
    ("in-sequential", sequential([3], LINEAR, on_stock_base(recursive))),
]


@pytest.mark.parametrize("build", [b for _, b in RECURSIVE], ids=[name for name, _ in RECURSIVE])
def test_class_that_reads_the_groups_lr_trains_eagerly(engine, mode, build):
    twins = Twins(build, fused=mode == "fused", answering=True)
    twins.run(8)
    for side in twins.sides():
        side.opt.param_groups[0]["lr"] *= 0.5
    twins.run(3)
    twins.check_host()


@pytest.mark.parametrize("build", [b for _, b in RECURSIVE], ids=[name for name, _ in RECURSIVE])
def test_class_that_reads_the_groups_lr_is_refused_in_a_graph(launch_engine, build):
    twins = Twins(build, answering=True, tables=True)
    twins.run(2)
    with (
        capturing(),
        pytest.raises(RuntimeError, match='ShrinkingLR computes lr from group\\["lr"\\]'),
    ):
        twins.ours.step()
    twins.run(2)  # and goes on eagerly
    twins.check_host()


def test_subclass_of_ours_with_its_own_step_is_refused():
    side = our_side(on_own_base(stateful, "ExponentialLR", gamma=0.9))
    with pytest.raises(ValueError, match="overrides step"):
        fused_sched.fuse(side.opt, side.scheduler, interval=1)


# -- GradScaler's found_inf ----------------------------------------------------------------------

OVERFLOWS = (0, 4, 5, 11)
"""Steps at which the scaler finds an infinity."""


def scaled_step(side: Any, overflow: bool) -> None:
    """An optimizer step as GradScaler makes it for ``_step_supports_amp_scaling``."""
    side.opt.grad_scale = torch.tensor(1.0)
    side.opt.found_inf = torch.tensor(float(overflow))
    try:
        side.step()
    finally:
        del side.opt.grad_scale, side.opt.found_inf


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("advance_on_skip", [False, True])
@pytest.mark.parametrize(
    "build", [EXPONENTIAL, sequential([3], LINEAR, COSINE)], ids=["exp", "seq"]
)
def test_skipped_step_and_the_schedule(engine, build, advance_on_skip, interval, reading):
    twins = Twins(build, fused=False)
    ours, stock = twins.ours, twins.stock
    fused_sched.fuse(ours.opt, ours.scheduler, interval, advance_on_skip=advance_on_skip)
    counted = 0
    for step in range(14):
        overflow = step in OVERFLOWS
        scaled_step(ours, overflow)
        if not overflow:
            stock.step()
        counted += advance_on_skip or not overflow
        if (advance_on_skip or not overflow) and counted % interval == 0:
            stock.scheduler.step()
        twins.check()
        if reading:
            assert_same(ours.scheduler.state_dict(), stock.scheduler.state_dict())
    twins.check_host()


def test_table_is_renewed_under_a_scaler(engine):
    twins = Twins(SHORT[0][1])
    for _ in range(17):
        scaled_step(twins.ours, overflow=False)
        twins.stock.step()
        twins.stock.scheduler.step()
        twins.check()
    twins.check_host()


# -- groups added later --------------------------------------------------------------------------


def add_group(side: Any) -> None:
    added = torch.nn.Parameter(torch.full((3,), 2.0))
    side.params.append(added)
    side.opt.add_param_group({"params": [added], "lr": 0.05})


GROWING = [
    make("StepLR", step_size=2),
    make("MultiStepLR", milestones=[3, 6]),
    EXPONENTIAL,
    LINEAR,
    make("ConstantLR", total_iters=6),
    make("PolynomialLR", total_iters=10),
    make("CosineAnnealingLR", T_max=20),
]


@pytest.mark.parametrize("build", GROWING, ids=lambda build: "")
def test_group_added_later_is_scheduled_too(engine, mode, build):
    twins = Twins(build, fused=mode == "fused")
    twins.run(4)
    for side in twins.sides():
        add_group(side)
    twins.peak = record(twins.stock.opt).abs()
    twins.run(6)
    for mine, theirs in zip(twins.ours.opt.param_groups, twins.stock.opt.param_groups):
        assert_same(mine["lr"], theirs["lr"])


@pytest.mark.parametrize(
    "build",
    [
        LAMBDA,
        make("CosineAnnealingWarmRestarts", T_0=4),
        make("OneCycleLR", max_lr=0.1, total_steps=9),
    ],
    ids=["lambda", "restarts", "one-cycle"],
)
def test_group_added_later_raises_as_torch(engine, mode, build):
    twins = Twins(build, fused=mode == "fused")
    twins.run(3)
    for side in twins.sides():
        add_group(side)
    twins.stock.step()
    with pytest.raises((ValueError, KeyError)) as stock:
        twins.stock.scheduler.step()
    with pytest.raises(stock.type, match=str(stock.value).replace("(", "\\(").replace(")", "\\)")):
        twins.ours.step()
        twins.ours.scheduler.step()


def test_change_that_a_graph_cannot_follow_is_refused_and_leaves_the_rest(launch_engine):
    side = our_side(make("StepLR", step_size=2))
    fused_sched.fuse(side.opt, side.scheduler, interval=1)
    side.step()
    side.opt._ledger.mirror.account.note_capture(None)
    saved = side.scheduler.state_dict()
    with pytest.raises(RuntimeError, match="changed its size.*release_capture"):
        side.scheduler.step_size = 2.5  # has no opcode: a table would have to be allocated
    with pytest.raises(RuntimeError, match="changed its size.*release_capture"):
        side.scheduler.load_state_dict({**saved, "step_size": 2.5, "gamma": 0.3})
    assert side.scheduler.state_dict() == saved
    for _ in range(2):
        side.step()
    assert side.opt.param_groups[0]["lr"] == pytest.approx(0.01)


def test_first_step_of_a_warm_up_from_zero_counts(engine):
    """lr 0 in every group before a first step is not always a checkpoint's probe."""
    param = torch.nn.Parameter(torch.ones(1))
    opt = fused_sched.optim.SGD([param], lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: epoch / 4)
    fused_sched.fuse(opt, scheduler, interval=1)
    for step in range(1, 4):
        param.grad = torch.ones(1)
        opt.step()
        assert opt.param_groups[0]["lr"] == 0.5 * step / 4
