"""``explain``: what it says of a step is what the step does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import inverse_sqrt, make
from tests.test_fused_mode import on_own_base, recursive
from tests.twins import our_side

pytestmark = pytest.mark.usefixtures("short_runs")

EXPONENTIAL = make("ExponentialLR", gamma=0.9)
LAMBDA = make("LambdaLR", lr_lambda=inverse_sqrt)


def test_engine_and_reason(engine):
    told = fused_sched.explain(our_side().opt)
    assert told.engine == {"cpu": engine}
    assert told.reason == {"cpu": "forced by use_engine()"}
    assert f"cpu: {engine} (forced by use_engine())" in str(told)


def test_one_launch_and_its_bytes(launch_engine):
    side = our_side()
    side.step()
    told = fused_sched.explain(side.opt)
    assert (told.launches_per_step, told.syncs_per_step) == (1, 0)
    # Three params of three float32: param and momentum are read and written, grad is read.
    assert told.bytes_per_step == 3 * 3 * 4 * (2 + 2 + 1)


def test_schedules_by_where_they_advance(engine):
    side = our_side(EXPONENTIAL, LAMBDA)
    fused_sched.fuse(side.opt, side.scheduler, interval=1)
    told = fused_sched.explain(side.opt)
    assert (told.fused, told.explicit) == (["ExponentialLR"], ["LambdaLR"])
    assert list(told.host_only) == ["LambdaLR"]  # its function is asked at each step
    side.opt.prepare()
    told = fused_sched.explain(side.opt)
    assert (told.fused, told.explicit, told.host_only) == (["ExponentialLR"], ["LambdaLR"], {})


def test_schedule_that_a_graph_cannot_hold(launch_engine):
    side = our_side(on_own_base(recursive, "StepLR", step_size=2))
    side.opt.prepare()
    told = fused_sched.explain(side.opt)
    assert list(told.host_only) == ["ShrinkingLR"]
    assert 'ShrinkingLR on the host only: ShrinkingLR computes lr from group["lr"]' in str(told)


def test_reason_is_not_the_one_of_a_scheduler_that_had_its_address(launch_engine):
    side = our_side()
    schedules = side.opt._ledger.mirror.host.schedules
    build = on_own_base(recursive, "StepLR", step_size=2)
    gone = build(fused_sched.lr_scheduler, side.opt)
    side.opt.prepare()
    assert schedules.why_refused(gone) is not None
    noted = schedules._refused[id(gone)]
    del gone
    new = fused_sched.lr_scheduler.StepLR(side.opt, 2)
    schedules._refused[id(new)] = noted  # what the note is if the new one lies at that address
    assert schedules.why_refused(new) is None


def test_obstacle_without_a_gpu(engine):
    told = fused_sched.explain(our_side().opt)
    assert not told.capturable
    assert "capturable: no, no param is on a CUDA device" in str(told)


def test_foreign_optimizer_is_refused():
    opt = torch.optim.SparseAdam([Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match="SparseAdam is not an optimizer of fused_sched.optim"):
        fused_sched.explain(opt)
