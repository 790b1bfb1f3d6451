"""Calls govern: a fused loop equals a stock loop, whenever it calls ``scheduler.step()``."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import native_engine, triton_engine
from fused_sched.runtime.device_state import DeviceState
from tests.cases import inverse_sqrt, make, sequential
from tests.recording import Recording
from tests.twins import Twins, assert_same, our_side, record, stock_side, without_params

pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]

EXPONENTIAL = make("ExponentialLR", gamma=0.9)
COSINE = make("CosineAnnealingLR", T_max=20)
LINEAR = make("LinearLR", start_factor=0.1, total_iters=6)
LAMBDA = make("LambdaLR", lr_lambda=inverse_sqrt)
ONE_CYCLE = make("OneCycleLR", max_lr=0.5, total_steps=400)

# -- every cadence -------------------------------------------------------------------------------


def epochs(*lengths: int) -> Iterator[int]:
    """A call at the end of each epoch; after the last the same ones again."""
    for length in itertools.cycle(lengths):
        yield from (0,) * (length - 1) + (1,)


def at_random() -> Iterator[int]:
    chosen = random.Random(3)
    while True:
        yield chosen.choice([0, 1, 1, 1, 2])


CADENCES: dict[str, Callable[[], Iterator[int]]] = {
    "each-step": lambda: itertools.repeat(1),
    "epochs-of-7": lambda: epochs(7),
    "epoch-that-broke-off": lambda: epochs(5, 5, 2),
    "four-calls-a-step": lambda: itertools.repeat(4),
    "one-missed": lambda: iter([1, 1, 1, 0, *[1] * 100]),
    "guarded": lambda: itertools.cycle([1, 1, 0]),
    "never": lambda: itertools.repeat(0),
    "at-random": at_random,
}
"""Calls of ``scheduler.step()`` after each optimizer step."""

SCHEDULES = {
    "exponential": [EXPONENTIAL],
    "one-cycle": [ONE_CYCLE],
    "lambda": [LAMBDA],
    "sequential": [sequential([3], LINEAR, COSINE)],
    "two": [LINEAR, EXPONENTIAL],
    "two-in-other-order": [EXPONENTIAL, LAMBDA],
}


def fused_twins(*builds: Any, name: str = "SGD") -> Twins:
    return Twins(*builds, name=name, answering=True)


def same_reading(twins: Twins) -> None:
    """What a loop can read, at any place of it."""
    ours, stock = twins.ours, twins.stock
    for mine, theirs in zip(ours.opt.param_groups, stock.opt.param_groups):
        assert_same(without_params(mine), without_params(theirs))
    for mine, theirs in zip(ours.schedulers, stock.schedulers):
        assert_same(mine.get_last_lr(), theirs.get_last_lr())
        assert_same(mine.last_epoch, theirs.last_epoch)


def run_cadence(twins: Twins, cadence: Iterator[int], steps: int, reading: bool) -> None:
    look = same_reading if reading else lambda twins: None
    for calls in itertools.islice(cadence, steps):
        for side in twins.sides():
            side.step()
        look(twins)
        for _ in range(calls):
            for number in range(len(twins.ours.schedulers)):
                for side in twins.sides():
                    side.schedulers[number].step()
                look(twins)
    same_reading(twins)
    twins.check_host()


@pytest.mark.parametrize("reading", [False, True], ids=["", "reading"])
@pytest.mark.parametrize("builds", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("cadence", CADENCES.values(), ids=CADENCES)
@pytest.mark.parametrize("engine", ["native", "eager"])
def test_fused_loop_equals_stock_loop(engine, cadence, builds, reading):
    with fused_sched.use_engine(engine):
        run_cadence(fused_twins(*builds), cadence(), 40, reading)


@pytest.mark.parametrize("cadence", CADENCES.values(), ids=CADENCES)
def test_fused_loop_equals_stock_loop_in_the_interpreter(cadence):
    with fused_sched.use_engine("triton"):
        run_cadence(fused_twins(EXPONENTIAL, name="Adam"), cadence(), 11, reading=False)


def test_two_optimizers_at_different_rates(engine):
    pairs = [fused_twins(EXPONENTIAL), fused_twins(EXPONENTIAL)]
    for step in range(24):
        for twins, every in zip(pairs, (1, 4)):
            for side in twins.sides():
                if step % every == every - 1:
                    side.step()
                side.scheduler.step()
            same_reading(twins)
    for twins in pairs:
        twins.check_host()


def test_calls_that_are_dropped_for_good_leave_lr_where_it_was(engine):
    twins = fused_twins(EXPONENTIAL)
    twins.run(3)
    for _ in range(4):
        for side in twins.sides():
            side.step()
        same_reading(twins)
    twins.run(2)
    twins.check_host()


# -- what a call costs ---------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch) -> list[str]:
    """What goes to the device beside the launches of ``optimizer.step()``."""
    noted: list[str] = []

    def noting(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def noted_function(*args: Any, **kwargs: Any) -> Any:
            noted.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted_function)

    for name in ("send_values", "send_record", "write"):
        noting(DeviceState, name)
    for engine in (native_engine, triton_engine):
        noting(engine, "advance")
    return noted


@pytest.mark.parametrize("length", [1, 4])
def test_regular_calls_send_nothing(launch_engine, sent, length):
    twins = fused_twins(EXPONENTIAL)
    run_cadence(twins, epochs(length), 2 * length, reading=False)
    sent.clear()
    for calls in itertools.islice(epochs(length), 6 * length):
        twins.ours.step()
        for _ in range(calls):
            twins.ours.scheduler.step()
    assert sent == []


def test_surplus_call_costs_one_launch_and_a_missed_one_one_upload(launch_engine, sent):
    twins = fused_twins(EXPONENTIAL)
    twins.run(3)
    sent.clear()
    for side in twins.sides():
        side.scheduler.step()
    assert sent == ["advance"]
    sent.clear()
    for _ in range(3):
        for side in twins.sides():
            side.step()
    assert sent == ["send_values"]  # for the call that the first of them expected
    same_reading(twins)
    twins.check_host()


# -- edits between the two calls -----------------------------------------------------------------


def halve_lr(side: Any) -> None:
    side.opt.param_groups[0]["lr"] *= 0.5


def edit_momentum(side: Any) -> None:
    side.opt.param_groups[1]["momentum"] = 0.5


def edit_gamma(side: Any) -> None:
    side.scheduler.gamma = 0.5


def reload(side: Any) -> None:
    side.scheduler.load_state_dict(side.scheduler.state_dict())
    side.opt.load_state_dict(side.opt.state_dict())


@pytest.mark.parametrize("edit", [halve_lr, edit_momentum, edit_gamma, reload])
def test_edit_between_the_optimizers_step_and_the_schedulers(engine, edit):
    twins = fused_twins(EXPONENTIAL)
    twins.run(3)
    for _ in range(2):
        for side in twins.sides():
            side.step()
            edit(side)
            side.scheduler.step()
        same_reading(twins)
        twins.run(2)
    twins.check_host()


def test_tensor_lr_between_the_two_calls_is_the_one_that_was_used(engine):
    sides = []
    for optim, schedulers in (
        (torch.optim, torch.optim.lr_scheduler),
        (fused_sched.optim, fused_sched.lr_scheduler),
    ):
        opt = optim.SGD([Parameter(torch.ones(3))], lr=torch.tensor(0.5))
        sides.append((opt, schedulers.ExponentialLR(opt, 0.5)))
    fused_sched.fuse(*sides[1])
    for _ in range(4):
        rates = []
        for opt, scheduler in sides:
            opt.param_groups[0]["params"][0].grad = torch.ones(3)
            opt.step()
            rates.append(opt.param_groups[0]["lr"].clone())
            scheduler.step()
            rates.append(opt.param_groups[0]["lr"].clone())
        assert torch.equal(rates[0], rates[2]) and torch.equal(rates[1], rates[3])


# -- callables are asked -------------------------------------------------------------------------


class Scale:
    """A callable object whose attribute the user changes."""

    def __init__(self) -> None:
        self.value = 1.0

    def __call__(self, epoch: int) -> float:
        return self.value


def from_iterator() -> Callable[[int], float]:
    values = (1.0 / (1 + number) for number in itertools.count())  # cannot be copied
    return lambda epoch: next(values)


@pytest.mark.parametrize("interval", [None, 1])
@pytest.mark.parametrize("kind", ["LambdaLR", "MultiplicativeLR"])
def test_changed_callable_is_shown_and_used(engine, kind, interval):
    scales = [Scale(), Scale()]
    sides = [
        stock_side(make(kind, lr_lambda=scales[0])),
        our_side(make(kind, lr_lambda=scales[1])),
    ]
    fused_sched.fuse(sides[1].opt, sides[1].scheduler, interval)
    for step in range(6):
        if step == 3:
            for scale in scales:
                scale.value = 0.01
        for side in sides:
            side.step()
            if interval is None or side is sides[0]:
                side.scheduler.step()
        assert_same(sides[1].scheduler.get_last_lr(), sides[0].scheduler.get_last_lr())
    torch.testing.assert_close(sides[1].params, sides[0].params)


@pytest.mark.parametrize("interval", [None, 1])
def test_iterator_is_asked_once_for_each_advance(engine, interval):
    sides = [side(make("LambdaLR", lr_lambda=from_iterator())) for side in (stock_side, our_side)]
    fused_sched.fuse(sides[1].opt, sides[1].scheduler, interval)
    for _ in range(6):
        for side in sides:
            side.step()
            if interval is None or side is sides[0]:
                side.scheduler.step()
    assert_same(sides[1].scheduler.get_last_lr(), sides[0].scheduler.get_last_lr())
    torch.testing.assert_close(sides[1].params, sides[0].params)


# -- replaced, taken out -------------------------------------------------------------------------


def test_replaced_schedule_is_gone(engine):
    param = Parameter(torch.ones(3))
    opt = fused_sched.optim.SGD([param], lr=0.1)
    scheduler = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, scheduler, interval=1)
    param.grad = torch.ones(3)
    opt.step()
    opt.param_groups[0]["lr"] = 0.1
    scheduler = fused_sched.lr_scheduler.ConstantLR(opt, factor=1.0)
    fused_sched.fuse(opt, scheduler, interval=1)
    for _ in range(4):
        opt.step()
    assert opt.param_groups[0]["lr"] == 0.1
    assert fused_sched.explain(opt).fused == ["ConstantLR"]


@pytest.mark.parametrize("everything", [False, True])
def test_unfused_schedule_steps_by_itself(engine, everything):
    twins = fused_twins(EXPONENTIAL, LINEAR)
    twins.run(4)
    fused_sched.unfuse(twins.ours.opt, None if everything else twins.ours.scheduler)
    assert fused_sched.explain(twins.ours.opt).fused == ([] if everything else ["LinearLR"])
    twins.run(4)
    twins.check_host()


def test_unfuse_of_a_foreign_optimizer_raises():
    with pytest.raises(TypeError, match="SGD has no fused schedule; expected an optimizer of"):
        fused_sched.unfuse(torch.optim.SGD([Parameter(torch.ones(1))]))


# -- graphs --------------------------------------------------------------------------------------


def captured(side: Any) -> Recording:
    side.backward()
    recording = Recording()
    recording.grads = [param.grad for param in side.params]
    with recording.made():
        side.opt.step()
        side.scheduler.step()
    return recording


def test_each_replay_advances_by_one_and_a_call_between_warns_once(launch_engine, whole_steps):
    twins = fused_twins(EXPONENTIAL)
    twins.run(3)
    recording = captured(twins.ours)
    for _ in range(4):
        recording.replay()
    with pytest.warns(UserWarning, match="a captured graph moves the schedule: each replay of"):
        twins.ours.scheduler.step()
    recording.replay()
    twins.ours.scheduler.step()  # a second warning would be an error
    assert twins.ours.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**8)
    assert twins.ours.scheduler.last_epoch == 8
    twins.ours.opt.release_capture()
    for _ in range(3):  # and the calls govern again
        twins.ours.step()
        twins.ours.scheduler.step()
    twins.ours.step()
    assert twins.ours.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**11)


def test_warm_up_without_calls_leaves_the_schedule_at_its_start(launch_engine, whole_steps):
    side = our_side(EXPONENTIAL)
    fused_sched.fuse(side.opt, side.scheduler)
    for _ in range(3):
        side.step()
    assert side.opt.param_groups[0]["lr"] == 0.1
    captured(side).replay(2)
    assert side.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**2)


def test_capture_behind_a_call_that_did_not_come_is_refused(launch_engine, whole_steps):
    twins = fused_twins(EXPONENTIAL)
    twins.run(3)
    twins.ours.step()
    with pytest.raises(RuntimeError, match="has not come.*call optimizer.prepare"):
        captured(twins.ours)
    twins.ours.opt.prepare()
    captured(twins.ours).replay(2)
    assert twins.ours.opt.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**5)


# -- a model that changes its dtype --------------------------------------------------------------


@pytest.mark.parametrize("early", ["fuse", "prepare"])
@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]
)
def test_moments_that_no_step_has_reached_follow_the_param(engine, dtypes, early):
    before, after = dtypes
    trained = []
    for optim in (torch.optim, fused_sched.optim):
        model = torch.nn.Linear(3, 2).to(before)
        with torch.no_grad():
            model.weight.fill_(0.5)
        opt = optim.Adam(model.parameters(), lr=0.1)
        if optim is fused_sched.optim:
            if early == "fuse":
                fused_sched.fuse(opt, fused_sched.lr_scheduler.ConstantLR(opt, factor=1.0))
            else:
                opt.prepare()
        model.to(after)
        for step in range(20):
            for param in model.parameters():
                param.grad = torch.full_like(param, 0.1 + 0.01 * step)
            opt.step()
        assert {s["exp_avg"].dtype for s in opt.state.values()} == {after}
        trained.append(list(model.parameters()))
    torch.testing.assert_close(trained[1][0], trained[0][0])


def test_record_shows_what_the_next_launch_uses():
    """Of the tests' own way to read the device, after a step whose call has not come."""
    twins = fused_twins(EXPONENTIAL)
    twins.run(3)
    for side in twins.sides():
        side.step()
    assert twins.ours.opt._ledger.mirror.account.cadence.ahead
    assert_same(float(record(twins.ours.opt)[0, 0]), float(record(twins.stock.opt)[0, 0]))


# -- tables for graphs ---------------------------------------------------------------------------


def tabulated(build: Any, fused: bool = True) -> Any:
    """Our side, with the tables that CUDA params need."""
    side = our_side(build)
    side.opt._ledger.mirror.host.schedules.tables = True
    if fused:
        fused_sched.fuse(side.opt, side.scheduler)
    return side


class Counted:
    """A callable that is slow, and ends; ``asked`` counts the calls, those of copies too."""

    asked = 0

    def __init__(self, seconds: float = 0.0, last: int | None = None) -> None:
        self.seconds, self.last = seconds, last

    def __call__(self, epoch: int) -> float:
        Counted.asked += 1
        time.sleep(self.seconds)
        assert self.last is None or epoch <= self.last, f"no epoch {epoch}"
        return 1.0 / (1 + epoch)


def test_without_cuda_nothing_is_asked_ahead(engine):
    function = Counted()
    side = our_side(make("LambdaLR", lr_lambda=function))
    asked = Counted.asked
    fused_sched.fuse(side.opt, side.scheduler)
    assert Counted.asked == asked
    side.step()
    side.scheduler.step()
    assert Counted.asked == asked + len(side.params)


def test_function_that_ends_raises_when_that_step_is_due(launch_engine):
    sides = []
    for build in (tabulated, stock_side):
        sides.append(build(make("LambdaLR", lr_lambda=Counted(last=4))))
    for side in sides:
        for _ in range(4):
            side.step()
            side.scheduler.step()
        side.step()
        with pytest.raises(AssertionError, match="no epoch 5"):
            side.scheduler.step()
    torch.testing.assert_close(sides[0].params, sides[1].params)


def test_slow_function_is_asked_for_a_part_and_completed_by_prepare(launch_engine, whole_steps):
    function = Counted(seconds=0.005)
    start = time.monotonic()
    side = tabulated(make("LambdaLR", lr_lambda=function))
    assert time.monotonic() - start < 1.0  # 200 epochs of 3 groups would take 3 seconds
    with pytest.raises(RuntimeError, match="not all of its 200 steps .* call optimizer.prepare"):
        captured(side)
    function.seconds = 0.0
    side.scheduler._table._calls = side.scheduler.lr_lambdas  # quick from here on
    side.opt.prepare()
    captured(side).replay(3)
    assert side.scheduler.get_last_lr()[0] == pytest.approx(0.1 / 4)


def test_eager_steps_make_a_table_longer(launch_engine):
    side = tabulated(make("LambdaLR", lr_lambda=Counted(seconds=0.002)))
    lengths = []
    for _ in range(3):
        lengths.append(side.scheduler._table.first + side.scheduler._table.length)
        side.step()
        side.scheduler.step()
    assert lengths == sorted(set(lengths))


@pytest.mark.parametrize("build", [LAMBDA, EXPONENTIAL], ids=["lambda", "exponential"])
def test_graph_shows_the_tables_values(launch_engine, whole_steps, build):
    side = tabulated(build)
    recording = captured(side)
    recording.replay(3)
    expected = stock_side(build)
    for _ in range(3):
        expected.step()
        expected.scheduler.step()
    assert_same(side.scheduler.get_last_lr(), expected.scheduler.get_last_lr())


def test_function_that_contradicts_the_table_of_a_graph_raises_once(launch_engine, whole_steps):
    scale = Scale()
    side = tabulated(make("LambdaLR", lr_lambda=scale))
    recording = captured(side)
    recording.replay(2)
    assert side.opt.param_groups[0]["lr"] == 0.1
    scale.value = 0.01
    recording.replay()
    with pytest.raises(RuntimeError, match=r"LambdaLR's function now gives \[0.001, .*step 3, but"):
        _ = side.opt.param_groups[0]["lr"]
    assert side.opt.param_groups[0]["lr"] == 0.1  # what the graph uses
    recording.replay()
    assert side.opt.param_groups[0]["lr"] == 0.1
    side.opt.release_capture()
    side.step()
    side.scheduler.step()
    assert side.opt.param_groups[0]["lr"] == pytest.approx(0.001)


# -- what a read costs ---------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [None, 1])
@pytest.mark.parametrize("build", [COSINE, ONE_CYCLE, sequential([30], LINEAR, COSINE)])
def test_read_after_many_steps_runs_none_of_torchs(build, interval, monkeypatch):
    """The compiled engine makes them: torch's code would take 15 us for each."""
    with fused_sched.use_engine("native"):
        stock, ours = stock_side(build), our_side(build)
        fused_sched.fuse(ours.opt, ours.scheduler, interval)
        for step in range(300):
            for side in (stock, ours):
                side.step()
                if interval is None or side is stock:
                    side.scheduler.step()
            if step == 2:
                monkeypatch.setattr(type(ours.scheduler), "_host_step", _not_wanted)
        assert_same(ours.scheduler.get_last_lr(), stock.scheduler.get_last_lr())
        assert_same(ours.scheduler.state_dict(), stock.scheduler.state_dict())
        for mine, theirs in zip(ours.opt.param_groups, stock.opt.param_groups):
            assert_same(without_params(mine), without_params(theirs))


def _not_wanted(*_: object) -> None:
    raise AssertionError("a read ran torch's own step")
