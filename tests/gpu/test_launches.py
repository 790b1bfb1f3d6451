"""One kernel per step: by the profiler for eager steps and replays, by the nodes of a graph."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from tests.cases import SHAPES

from .capture import capture, new_graph
from .observe import launched, nodes
from .training import ADAMW_ONE_CYCLE, PAIRS, SGD_COSINE, Training

KERNEL = {"kernel": 1}
WITH_ADDRESSES = {"triton": {"kernel": 1, "memcpy": 1}, "native": KERNEL}
"""An eager launch with new gradients; to the native kernel their addresses are parameters."""


@pytest.fixture(params=PAIRS, ids=[pair.id for pair in PAIRS])
def fused(request, device):
    """Each pair, fused, a few steps old, with gradients at rest."""
    ours = Training(request.param, fused_sched, device, torch.float32)
    fused_sched.fuse(ours.opt, ours.sched)
    ours.warm_up()
    ours.opt._ledger.stepper.step()  # a full one leaves the addresses in the table
    ours.sched.step()
    return ours


def test_fused_eager_step_is_one_kernel(fused, tmp_path):
    assert launched(fused.opt.step, tmp_path) == KERNEL


def test_scheduler_step_of_a_fused_schedule_launches_nothing(fused, tmp_path):
    """Where the host asks a function for the next lr, it sends what the function gives."""

    def step() -> None:
        fused.opt.step()
        fused.sched.step()

    asks = isinstance(fused.sched, fused_sched.lr_scheduler.LambdaLR)
    assert launched(step, tmp_path) == KERNEL | ({"memcpy": 1} if asks else {})


def test_step_with_moved_gradients_adds_at_most_one_copy(fused, engine, tmp_path):
    for param in fused.net.parameters():
        param.grad = param.grad.clone()
    assert launched(fused.opt.step, tmp_path) == WITH_ADDRESSES[engine]
    fused.sched.step()
    assert launched(fused.opt.step, tmp_path) == KERNEL


def test_captured_step_is_one_kernel_node(fused):
    graph = new_graph(fused.device, keep_graph=True)
    with capture(graph):
        fused.opt.step()
    assert nodes(graph) == KERNEL
    graph.replay()


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_captured_addresses_are_the_graphs_own_under_every_mode(mode, device):
    """Two steps with gradients of their own; before each, memory as large as a table is freed."""
    weight = Parameter(torch.zeros(4, device=device))
    opt = fused_sched.optim.SGD([weight], lr=1.0)
    first, second = (torch.full((4,), value, device=device) for value in (1.0, 10.0))
    weight.grad = torch.zeros(4, device=device)
    opt.step()
    (device_state,) = opt._ledger.mirror.host.device_states.values()
    addresses = device_state.table.addresses
    graph = new_graph(device, keep_graph=True)
    with capture(graph, capture_error_mode=mode):
        for grad in (first, second):
            scratch = torch.empty_like(addresses)
            scratch.fill_(1)
            del scratch
            weight.grad = grad
            opt.step()
    assert nodes(graph) == {"kernel": 4}
    weight.grad = torch.zeros(4, device=device)
    for replays in (1, 2):
        graph.replay()
        opt.step()
        assert weight.tolist() == [-11.0 * replays] * 4


def test_refused_capture_leaves_nothing_in_the_graph(device):
    """Neither memory that is cleared at each replay nor a copy."""
    ours = Training(SGD_COSINE, fused_sched, device, torch.float32)
    ours.backward()
    touched = torch.zeros(1, device=device)
    graph = new_graph(device, keep_graph=True)
    with capture(graph):
        touched.add_(1)
        with pytest.raises(RuntimeError, match=r"optimizer\.prepare\(\)"):
            ours.opt.step()
    assert nodes(graph) == KERNEL


def test_replay_of_a_captured_step_is_one_kernel(fused, cuda, tmp_path):
    graph = new_graph(cuda)
    with capture(graph):
        fused.opt.step()
    graph.replay()
    assert launched(graph.replay, tmp_path) == KERNEL


def test_explain_states_the_nodes_of_a_captured_step(fused, cuda):
    told = fused_sched.explain(fused.opt)
    assert told.launches_per_step == 1
    assert told.syncs_per_step == 0
    assert told.capturable, told.obstacle
    assert str(told).endswith("a captured step has one kernel node")


def test_captured_explicit_scheduler_step_adds_one_kernel_node(device):
    ours = Training(SGD_COSINE, fused_sched, device, torch.float32)
    ours.warm_up()
    graph = new_graph(device, keep_graph=True)
    with capture(graph):
        ours.opt.step()
        ours.sched.step()
    assert nodes(graph) == {"kernel": 2}


def test_explicit_eager_scheduler_step_starts_no_kernel(device, tmp_path):
    ours = Training(ADAMW_ONE_CYCLE, fused_sched, device, torch.float32)
    ours.warm_up()
    ours.opt.step()
    assert launched(ours.opt.step, tmp_path) == KERNEL
    seen = launched(ours.sched.step, tmp_path)
    assert seen["kernel"] == 0 and seen.total() <= 2, seen


def test_assigned_lr_is_one_kernel(device, tmp_path):
    ours = Training(SGD_COSINE, fused_sched, device, torch.float32)
    ours.warm_up()

    def assign() -> None:
        ours.opt.param_groups[0]["lr"] = 0.25

    assert launched(assign, tmp_path) == KERNEL


def test_all_groups_and_dtypes_go_through_one_launch(device, tmp_path):
    """300 tensors, 28 groups, four dtypes, every shape that fits in place."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    odd = [s for s in SHAPES if "gaps" not in s.id]
    params = [
        Parameter(odd[i % len(odd)].build(dtypes[i % 4], device).detach()) for i in range(300)
    ]
    for param in params:
        param.grad = torch.ones_like(param)
    groups = [{"params": params[i::28], "lr": 0.01 * (i + 1)} for i in range(28)]
    opt = fused_sched.optim.AdamW(groups)
    fused_sched.fuse(opt, fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.5))
    opt.step()
    assert launched(opt.step, tmp_path) == KERNEL
