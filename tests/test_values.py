"""``scheduler.values(n)`` foretells what training will use, and changes nothing; ``plot(n)``."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.schedules import values
from tests.cases import SCHEDULERS, SchedulerCase, make, plain_step
from tests.gpu import capture as stand_in
from tests.interpreter import quick
from tests.twins import RATES, Twins, assert_same, our_side, stock_side, without_params

N, BEHIND = 120, 13
"""Values that are asked for, and steps that have been made before."""

BY_ITSELF = [case for case in SCHEDULERS if case.advance is plain_step]
CYCLES = [case for case in SCHEDULERS if case.name in ("CyclicLR", "OneCycleLR")]
ENDLESS = [case for case in BY_ITSELF if case.steps is None]
MOMENTS = {"momentum": lambda group: group["momentum"], "beta1": lambda group: group["betas"][0]}

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")


def over(cases: list[SchedulerCase]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@pytest.fixture(params=["native", "eager"], autouse=True)
def _engine(request):
    """The compiled engine's trace, and torch's own recurrence on a copy."""
    with fused_sched.use_engine(request.param):
        yield


class Metrics:
    """Takes ``step(metric)`` in place of a scheduler and keeps the metrics; none if it has none."""

    def __init__(self, case: SchedulerCase, first: int, last: int) -> None:
        self.seen: list[float] = []
        for step in range(first, last):
            case.advance(self, step)

    def step(self, *metric: float) -> None:
        self.seen += metric

    @property
    def given(self) -> dict[str, list[float]]:
        return {"metrics": self.seen} if self.seen else {}


def run(case: SchedulerCase, side: Any, first: int, last: int) -> None:
    for step in range(first, last):
        side.step()
        case.advance(side.scheduler, step)


def lock_step(case: SchedulerCase, side: Any, n: int, first: int, read: Any) -> Tensor:
    """[n, groups]: what a group has before each of the next n steps."""
    rows = []
    for step in range(first, first + n):
        rows.append([float(read(group)) for group in side.opt.param_groups])
        if step + 1 < first + n:
            run(case, side, step, step + 1)
    return torch.tensor(rows, dtype=torch.float64)


def read_lr(group: dict[str, Any]) -> Any:
    return group["lr"]


def assert_foretold(
    case: SchedulerCase, ours: Tensor, stock: Tensor, first: int, peak: float = 0.0
) -> None:
    """Every value to the promise, as a share of the schedule's peak."""
    assert ours.shape == stock.shape and ours.dtype == torch.float64
    peak = max(peak, stock.abs().max().item(), *RATES)
    shares = torch.tensor([case.tolerance(first + k) for k in range(len(stock))]).double()
    wrong = ~((ours == stock) | ((ours - stock).abs() <= shares[:, None] * peak))
    assert not wrong.any(), (wrong.nonzero()[:3], ours[wrong][:3], stock[wrong][:3])


def everything(side: Any) -> Any:
    """What the user of a pair can read of it."""
    groups = [copy.deepcopy(without_params(group)) for group in side.opt.param_groups]
    params = [param.detach().clone() for param in side.params]
    return groups, copy.deepcopy(side.scheduler.state_dict()), side.opt.state_dict(), params


# -- against stock torch, in lock-step -----------------------------------------------------------


@over(SCHEDULERS)
def test_values_are_those_of_stock_torch_step_by_step(case):
    n = case.horizon(N - 1) + 1
    ours, stock = our_side(case.build), stock_side(case.build)
    foretold = ours.scheduler.values(n, **Metrics(case, 1, n).given)
    assert_foretold(case, foretold["lr"], lock_step(case, stock, n, 1, read_lr), 0)


@over(SCHEDULERS)
def test_values_go_on_from_the_middle_of_a_run(case):
    behind = case.horizon(BEHIND)
    n = case.horizon(behind + N - 1) - behind + 1
    ours, stock = our_side(case.build), stock_side(case.build)
    for side in (ours, stock):
        run(case, side, 1, 1 + behind)
    metrics = Metrics(case, 1 + behind, behind + n).given
    foretold = ours.scheduler.values(n, **metrics)
    expected = lock_step(case, stock, n, 1 + behind, read_lr)
    assert_foretold(case, foretold["lr"], expected, behind)
    trained = lock_step(case, ours, n, 1 + behind, read_lr)
    assert_foretold(case, foretold["lr"], trained, behind)


@pytest.mark.parametrize(("name", "key"), [("SGD", "momentum"), ("AdamW", "beta1")])
@over(CYCLES)
def test_values_have_the_cycled_momentum(case, name, key):
    n = case.horizon(N - 1) + 1
    ours, stock = our_side(case.build, name=name), stock_side(case.build, name=name)
    foretold = ours.scheduler.values(n)
    cycled = ours.scheduler.cycle_momentum
    assert list(foretold) == (["lr", key] if cycled else ["lr"])
    assert list(ours.scheduler.values(1)) == list(foretold)  # also before it has moved
    if cycled:
        expected = lock_step(case, stock, n, 1, MOMENTS[key])
        assert_foretold(case, foretold[key], expected, 0)


@over(BY_ITSELF)
def test_values_foretell_a_fused_schedule(case):
    steps = case.horizon(BEHIND + N - 2)
    behind = min(BEHIND, steps)
    twins = Twins(case.build)
    for side in twins.sides():
        for _ in range(behind):
            side.step()
            if side is twins.stock:
                side.scheduler.step()
    foretold = twins.ours.scheduler.values(steps - behind + 1)["lr"]
    stock = lock_step(case, twins.stock, steps - behind + 1, 1, read_lr)
    assert_foretold(case, foretold, stock, behind)


def test_values_go_on_from_where_a_graph_has_left_the_schedule():
    """The device is ahead of the host there: it is read once."""
    build = make("CosineAnnealingLR", T_max=40)
    ours, stock = our_side(build), stock_side(build)
    cpu = torch.device("cpu")
    with fused_sched.use_engine("triton"), quick():
        fused_sched.fuse(ours.opt, ours.scheduler, interval=1)
        ours.backward()
        graph = stand_in.new_graph(cpu)
        with stand_in.capture(graph):
            ours.opt.step()
        for _ in range(7):
            graph.replay()
    for _ in range(7):
        stock.step()
        stock.scheduler.step()
    expected = lock_step(SCHEDULERS[0], stock, 20, 1, read_lr)
    assert_foretold(SCHEDULERS[0], ours.scheduler.values(20)["lr"], expected, 7)


def test_values_of_a_fused_schedule_count_its_own_steps():
    build = make("StepLR", step_size=2, gamma=0.5)
    side = our_side(build)
    fused_sched.fuse(side.opt, side.scheduler, interval=4)
    for _ in range(5):
        side.step()
    lr = RATES[0]
    assert side.scheduler.values(4)["lr"][:, 0].tolist() == [lr, lr / 2, lr / 2, lr / 4]


@over(ENDLESS)
def test_values_go_on_after_resuming(case):
    before, stock = our_side(case.build), stock_side(case.build)
    for side in (before, stock):
        run(case, side, 1, 1 + BEHIND)
    after = our_side(case.build)
    after.opt.load_state_dict(copy.deepcopy(before.opt.state_dict()))
    after.scheduler.load_state_dict(copy.deepcopy(before.scheduler.state_dict()))
    expected = lock_step(case, stock, N, 1 + BEHIND, read_lr)
    assert_foretold(case, after.scheduler.values(N)["lr"], expected, BEHIND)


def test_values_follow_an_edit_of_the_scheduler_and_of_lr():
    side = our_side(make("ExponentialLR", gamma=0.5))
    side.scheduler.values(5)
    side.scheduler.gamma = 0.25
    side.opt.param_groups[0]["lr"] = 8.0
    assert side.scheduler.values(3)["lr"][:, 0].tolist() == [8.0, 2.0, 0.5]


def test_values_move_the_hyper_that_the_schedule_moves():
    opt = fused_sched.optim.SGD([Parameter(torch.ones(1))], lr=0.5, weight_decay=0.1)
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.5, hyper="weight_decay")
    foretold = sched.values(3)
    assert list(foretold) == ["weight_decay"]
    assert foretold["weight_decay"][:, 0].tolist() == [0.1, 0.05, 0.025]


def test_values_of_a_chain_have_every_hyper():
    opt = fused_sched.optim.SGD([Parameter(torch.ones(1))], lr=0.5, weight_decay=0.1)
    schedulers = fused_sched.lr_scheduler
    chain = schedulers.ChainedScheduler(
        [
            schedulers.ExponentialLR(opt, gamma=0.5),
            schedulers.ExponentialLR(opt, gamma=0.1, hyper="weight_decay"),
        ]
    )
    foretold = chain.values(2)
    assert foretold["lr"][:, 0].tolist() == [0.5, 0.25]
    assert foretold["weight_decay"][:, 0].tolist() == pytest.approx([0.1, 0.01])


def test_values_work_on_a_foreign_optimizer_and_on_a_class_of_ones_own():
    class Halving(fused_sched.lr_scheduler.ExponentialLR):
        def get_lr(self):
            lrs = super().get_lr()
            return [0.125 for _ in lrs] if self.last_epoch >= 2 else lrs

    opt = torch.optim.RMSprop([Parameter(torch.ones(1))], lr=1.0)
    assert Halving(opt, 0.5).values(4)["lr"][:, 0].tolist() == [1.0, 0.5, 0.125, 0.125]


def test_a_million_values_take_seconds_at_most_on_the_compiled_engine():
    with fused_sched.use_engine("native"):
        side = our_side(make("CosineAnnealingLR", T_max=999_999))
        lr = side.scheduler.values(1_000_000)["lr"]
    assert lr.shape == (1_000_000, len(RATES))
    middle = RATES[0] * (1 + math.cos(math.pi * 500_000 / 999_999)) / 2
    assert lr[500_000, 0].item() == pytest.approx(middle, rel=1e-9)


# -- nothing changes -----------------------------------------------------------------------------


@over(SCHEDULERS)
def test_values_change_nothing(case):
    left = case.horizon(BEHIND + 5)
    behind = max(left - 5, 0)
    side = our_side(case.build)
    run(case, side, 1, 1 + behind)
    before = everything(side)
    n = left - behind + 1
    metrics = Metrics(case, 1 + behind, behind + n).given
    first = side.scheduler.values(n, **metrics)
    assert_same(everything(side), before, 0.0)
    again = side.scheduler.values(n, **metrics)
    assert [torch.equal(again[key], first[key]) for key in first] == [True] * len(again)


@over(ENDLESS)
def test_training_goes_on_as_if_values_had_not_been_asked_for(case):
    asked, silent = Twins(case.build), Twins(case.build)
    for _ in range(6):
        asked.step()
        asked.ours.scheduler.values(9)
        silent.step()
    assert_same(everything(asked.ours), everything(silent.ours), 0.0)


def test_values_leave_a_callable_with_a_memory_alone():
    class Counting:
        calls = 0

        def __call__(self, epoch: int) -> float:
            self.calls += 1
            return 0.5**self.calls

    count = Counting()
    side = our_side(make("LambdaLR", lr_lambda=count))
    before = count.calls
    side.scheduler.values(50)
    assert count.calls == before > 0


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, 2.0, "3"])
def test_n_is_a_positive_integer(n):
    with pytest.raises(ValueError, match=f"Expected positive integer n, but got {n}"):
        our_side(make("StepLR", step_size=1)).scheduler.values(n)


def test_values_past_the_end_say_how_many_there_are():
    side = our_side(make("OneCycleLR", max_lr=0.1, total_steps=10))
    side.step()
    side.scheduler.step()
    assert len(side.scheduler.values(10)["lr"]) == 10
    with pytest.raises(ValueError, match="OneCycleLR gives 10 more values, not 11: Tried to step"):
        side.scheduler.values(11)


def test_plateau_needs_metrics_and_says_how_many():
    plateau = our_side(make("ReduceLROnPlateau")).scheduler
    with pytest.raises(ValueError, match=r"values\(5, metrics=\[...\]\) with 4 numbers"):
        plateau.values(5)
    with pytest.raises(ValueError, match="5 values take 4 metrics, but got 3"):
        plateau.values(5, metrics=[1.0] * 3)
    assert len(plateau.values(5, metrics=[1.0] * 5)["lr"]) == 5


def test_metrics_are_refused_where_none_is_followed():
    with pytest.raises(ValueError, match="StepLR follows no metric"):
        our_side(make("StepLR", step_size=1)).scheduler.values(3, metrics=[1.0, 1.0])


def test_values_are_refused_under_capture(monkeypatch):
    side = our_side(make("StepLR", step_size=1))
    monkeypatch.setattr(values, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match="call it before or after"):
        side.scheduler.values(3)


# -- the plot ------------------------------------------------------------------------------------


@pytest.fixture
def pyplot(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    module = pytest.importorskip("matplotlib.pyplot", reason="plots are optional")
    yield module
    module.close("all")


def test_plot_draws_every_group_of_every_hyper(pyplot):
    side = our_side(make("OneCycleLR", max_lr=0.1, total_steps=30))
    run(SCHEDULERS[0], side, 1, 4)
    expected = side.scheduler.values(20)
    axes = side.scheduler.plot(20)
    assert [one.get_ylabel() for one in axes] == ["lr", "momentum"]
    assert axes[-1].get_xlabel() == "step"
    for one, drawn in zip(axes, expected.values(), strict=True):
        for line, values_of_group in zip(one.lines, drawn.t(), strict=True):
            assert line.get_xdata().tolist() == list(range(3, 23))
            assert line.get_ydata().tolist() == values_of_group.tolist()
    labels = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert labels == [f"OneCycleLR, group {number}" for number in range(len(RATES))]


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    for name in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        our_side(make("StepLR", step_size=1)).scheduler.plot(3)
