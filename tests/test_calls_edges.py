"""What a loop may do around the calls of a fused scheduler: each was wrong once."""

from __future__ import annotations

import gc
import itertools
import pickle
import sys
import threading
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import make
from tests.twins import Twins, assert_same, our_side, stock_side, without_params

pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]

EXPONENTIAL = make("ExponentialLR", gamma=0.9)


@pytest.fixture(params=["native", "eager"], autouse=True)
def engine(request):
    with fused_sched.use_engine(request.param):
        yield request.param


def same_groups(twins: Twins) -> None:
    for mine, theirs in zip(twins.ours.opt.param_groups, twins.stock.opt.param_groups):
        assert_same(without_params(mine), without_params(theirs))


def fused(*builds: Any) -> Twins:
    return Twins(*builds, answering=True)


# -- functions of users --------------------------------------------------------------------------


def test_fusing_one_scheduler_asks_no_function_of_another():
    def build(side: Any) -> Any:
        values = (1 / (1 + number) for number in itertools.count())
        return side(EXPONENTIAL, make("LambdaLR", lr_lambda=lambda epoch: next(values)))

    stock, ours = build(stock_side), build(our_side)
    fused_sched.fuse(ours.opt, ours.scheduler)
    for _ in range(6):
        for side in (stock, ours):
            side.step()
            for scheduler in side.schedulers:
                scheduler.step()
    assert_same(ours.opt.param_groups[0]["lr"], stock.opt.param_groups[0]["lr"])


@pytest.mark.parametrize("fuse", [False, True])
def test_function_that_writes_another_hyperparameter_is_followed(fuse):
    sides = []
    for side_of in (stock_side, our_side):
        here: list[Any] = []

        def write(epoch: int, here: list[Any] = here) -> float:
            for group in here[0].opt.param_groups if here else ():
                group["momentum"], group["weight_decay"] = 0.5, 0.1 * epoch
            return 0.9**epoch

        side = side_of(make("LambdaLR", lr_lambda=write))
        here.append(side)
        sides.append(side)
    if fuse:
        fused_sched.fuse(sides[1].opt, sides[1].scheduler)
    for _ in range(6):
        for side in sides:
            side.step()
            side.scheduler.step()
    torch.testing.assert_close(sides[1].params, sides[0].params)


def test_get_lr_replaced_on_one_scheduler_computes_its_values():
    twins = fused(make("StepLR", step_size=2))
    twins.run(3)
    for side in twins.sides():
        side.scheduler.get_lr = lambda: [0.123] * 3
    twins.run(3)
    same_groups(twins)


def test_option_that_a_subclass_computes_is_used():
    sides = []
    for module, side_of in (
        (torch.optim.lr_scheduler, stock_side),
        (fused_sched.lr_scheduler, our_side),
    ):

        class Slowing(module.ExponentialLR):
            @property
            def gamma(self):
                return 0.5 if self.last_epoch < 3 else 0.9

            @gamma.setter
            def gamma(self, value):
                pass

        sides.append(side_of(lambda _, opt, cls=Slowing: cls(opt, 0.5)))
    fused_sched.fuse(sides[1].opt, sides[1].scheduler)
    for _ in range(6):
        for side in sides:
            side.step()
            side.scheduler.step()
    assert_same(sides[1].scheduler.get_last_lr(), sides[0].scheduler.get_last_lr())
    torch.testing.assert_close(sides[1].params, sides[0].params)


# -- groups and lists that change ----------------------------------------------------------------


def replace_group(opt: Any) -> None:
    opt.param_groups[0] = {**opt.param_groups[0], "lr": 0.77}


def replace_list(opt: Any) -> None:
    opt.param_groups = [dict(group, lr=0.4) for group in opt.param_groups]


def reverse_groups(opt: Any) -> None:
    opt.param_groups.reverse()


@pytest.mark.parametrize("change", [replace_group, replace_list, reverse_groups])
def test_groups_replaced_between_the_two_calls(change):
    twins = fused(EXPONENTIAL)
    twins.run(4)
    for side in twins.sides():
        side.step()
        change(side.opt)
        side.scheduler.step()
    same_groups(twins)
    for _ in range(3):
        for side in twins.sides():
            side.step()
            side.scheduler.step()
    same_groups(twins)


def test_group_added_between_the_two_calls_raises_at_the_call():
    twins = fused(make("OneCycleLR", max_lr=0.5, total_steps=40))
    twins.run(4)
    for side in twins.sides():
        side.step()
        side.opt.add_param_group({"params": [Parameter(torch.ones(2))], "lr": 0.1})
        with pytest.raises(KeyError, match="initial_lr"):
            side.scheduler.step()


def halve_base_lr(scheduler: Any) -> None:
    scheduler.base_lrs[0] *= 0.5


def add_milestone(scheduler: Any) -> None:
    scheduler.milestones[6] += 1


LISTS = [
    (make("CosineAnnealingWarmRestarts", T_0=4), halve_base_lr),
    (make("MultiStepLR", milestones=[20]), add_milestone),
]


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize(("build", "change"), LISTS, ids=["base_lrs", "milestones"])
def test_list_changed_in_place_takes_effect(build, change, between):
    twins = fused(build)
    twins.run(4)
    for side in twins.sides():
        if between:
            side.step()
        change(side.scheduler)
        if between:
            side.scheduler.step()
    twins.run(6)
    twins.check_host()


# -- others beside it ----------------------------------------------------------------------------


def test_scheduler_that_the_device_has_not_moved_keeps_what_the_host_gave_it():
    twins = fused(EXPONENTIAL)
    others = [
        module.StepLR(side.opt, step_size=3)
        for module, side in zip(
            (torch.optim.lr_scheduler, fused_sched.lr_scheduler), twins.sides(), strict=True
        )
    ]
    for _ in range(4):
        for side in twins.sides():
            side.step()
            side.scheduler.step()
    for side, other in zip(twins.sides(), others, strict=True):
        other.last_epoch = 8
        side.step()
        side.scheduler.step()
    assert_same(others[1].last_epoch, others[0].last_epoch)
    assert_same(others[1].get_last_lr(), others[0].get_last_lr())


def test_failing_fuse_leaves_the_optimizer_as_it_was():
    twins = fused(EXPONENTIAL)
    twins.run(3)
    for side in twins.sides():
        side.schedulers.clear()  # abandoned
    gc.collect()
    ended = fused_sched.lr_scheduler.StepLR(twins.ours.opt, step_size=0)
    with pytest.raises(ZeroDivisionError):
        fused_sched.fuse(twins.ours.opt, ended, interval=1)
    for _ in range(3):
        for side in twins.sides():
            side.step()
    same_groups(twins)


def test_state_dict_of_a_users_own_can_be_pickled():
    class Mine(fused_sched.lr_scheduler.StepLR):
        def state_dict(self):
            return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    side = our_side(lambda _, opt: Mine(opt, step_size=3))
    fused_sched.fuse(side.opt, side.scheduler)
    for _ in range(5):
        side.step()
        side.scheduler.step()
    assert pickle.loads(pickle.dumps(side.scheduler.state_dict()))["last_epoch"] == 5


def test_thread_that_reads_takes_nothing_from_the_one_that_trains():
    param = Parameter(torch.ones(2))
    param.grad = torch.zeros(2)
    opt = fused_sched.optim.SGD([param], lr=0.1)
    scheduler = fused_sched.lr_scheduler.CosineAnnealingLR(opt, T_max=100_000)
    fused_sched.fuse(opt, scheduler)
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            _ = opt.param_groups[0]["lr"], scheduler.last_epoch, scheduler.get_last_lr()

    reader = threading.Thread(target=read)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    reader.start()
    try:
        for _ in range(2_000):
            opt.step()
            scheduler.step()
            opt.param_groups[0]["weight_decay"] = 0.0
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(before)
    assert scheduler.last_epoch == 2_000
