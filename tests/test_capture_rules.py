"""What may happen around a capture, without a GPU: tests/recording.py stands for a graph.

``tests/gpu`` does the same with real graphs.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_sched
from tests.cases import SHAPES, gradient
from tests.recording import Recording, record
from tests.training import FEW, OURS, case, check, named, set_grads, stock, three, train

pytestmark = pytest.mark.usefixtures("launch_engine", "whole_steps")

MOMENTUM, ADAM = case("SGD-momentum"), case("Adam-weight_decay")


def exponential(opt: Any, fused: bool = True) -> Any:
    schedule = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    if fused:
        fused_sched.fuse(opt, schedule, interval=1)
    return schedule


def alone(row: Any, steps: int, step: int = 0, **overrides: Any) -> tuple[Any, list[Tensor], Any]:
    """Stock torch with the same gradients at every step, and a schedule."""
    theirs = three()
    opt = stock(row, theirs, **overrides)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    for _ in range(steps):
        set_grads(theirs, step)
        opt.step()
        schedule.step()
    return opt, theirs, schedule


# -- before and during a capture -----------------------------------------------------------------


@pytest.mark.parametrize("row", **named(FEW))
def test_a_first_step_under_capture_names_prepare(row):
    params = three()
    opt = row.build(OURS, params)
    before = [p.clone() for p in params]
    with pytest.raises(RuntimeError, match=r"nothing|no state.*call optimizer.prepare\(\)"):
        record(opt, params)
    assert not opt.state
    opt.prepare()
    record(opt, params)
    assert all(map(torch.equal, params, before))


def test_a_param_without_state_cannot_enter_a_capture():
    params = three()
    opt = ADAM.build(OURS, params)
    params[1].requires_grad_(False)
    train(opt, [params[0], params[2]], range(1))
    params[1].requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"param 1 has no state.*call optimizer.prepare\(\)"):
        record(opt, params)
    opt.prepare()
    record(opt, params)


def test_a_moved_param_cannot_enter_a_capture():
    params = three()
    opt = ADAM.build(OURS, params)
    train(opt, params, range(1))
    params[1].data = params[1].data.clone()
    with pytest.raises(RuntimeError, match="param 1 moved"):
        record(opt, params)


def test_gradients_of_a_new_dtype_cannot_enter_a_capture():
    params = [SHAPES[9].build(torch.bfloat16)]
    params[0].grad_dtype = None
    opt = ADAM.build(OURS, params)
    train(opt, params, range(1))
    params[0].grad = gradient(params[0], 1).float()
    with pytest.raises(RuntimeError, match="gradients have other dtypes"), Recording().made():
        opt.step()
    opt.step()
    params[0].grad = gradient(params[0], 1).float()
    with Recording().made():
        opt.step()


def test_what_a_capture_cannot_hold_raises():
    params = three()
    opt = MOMENTUM.build(OURS, params)
    train(opt, params, range(1))
    saved = opt.state_dict()
    with Recording().made():
        with pytest.raises(RuntimeError, match="assigned while a CUDA graph is being captured"):
            opt.param_groups[0]["lr"] = 0.5
        with pytest.raises(RuntimeError, match="call it before the capture"):
            opt.prepare()
        with pytest.raises(RuntimeError, match="cannot run while"):
            opt.load_state_dict(saved)
        with pytest.raises(RuntimeError, match="cannot run while"):
            opt.release_capture()
        opt.param_groups[0]["name"] = "the user's own"
    assert opt.param_groups[0]["lr"] == MOMENTUM.kwargs["lr"]


def test_groups_put_in_place_before_a_capture_raise_with_the_cure():
    params = three()
    opt = MOMENTUM.build(OURS, params)
    train(opt, params, range(1))
    opt.param_groups[0] = dict(opt.param_groups[0])
    with pytest.raises(RuntimeError, match=r"replaced.*call optimizer.prepare\(\)"):
        record(opt, params)
    opt.prepare()
    record(opt, params)


def test_reads_during_a_capture_return_the_last_values():
    params = three()
    opt = MOMENTUM.build(OURS, params, lr=1.0)
    schedule = exponential(opt)
    train(opt, params, range(2))
    assert opt.param_groups[0]["lr"] == 0.25
    set_grads(params, 2)
    recording = Recording()
    with recording.made():
        opt.step()
        assert opt.param_groups[0]["lr"] == 0.25
        assert opt.state_dict()["param_groups"][0]["lr"] == 0.25
        assert len(opt.state) == 3
    assert opt.param_groups[0]["lr"] == 0.25
    assert schedule.last_epoch == 2
    recording.replay()
    assert opt.param_groups[0]["lr"] == 0.125
    assert schedule.last_epoch == 3


# -- replays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", **named(FEW))
def test_replays_are_steps_with_a_live_schedule(row):
    """A captured first step, three replays; reads come from the device."""
    params = three()
    opt = row.build(OURS, params)
    schedule = exponential(opt)
    record(opt, params).replay(3)
    reference, theirs, expected = alone(row, 3)
    check(params, theirs)
    assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    assert schedule.last_epoch == expected.last_epoch == 3
    assert schedule.get_last_lr() == expected.get_last_lr()
    for mine, other in zip(params, theirs, strict=True):
        assert float(opt.state[mine].get("step", 3)) == float(reference.state[other].get("step", 3))


@pytest.mark.parametrize("row", **named(FEW))
def test_eager_steps_between_replays_count(row):
    params = three()
    opt = row.build(OURS, params)
    schedule = exponential(opt)
    train(opt, params, [0])
    recording = record(opt, params)
    recording.replay()
    opt.zero_grad()
    train(opt, params, [0])
    recording.replay()
    reference, theirs, _ = alone(row, 4)
    check(params, theirs)
    assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    assert schedule.last_epoch == 4


@pytest.mark.parametrize("row", **named(FEW))
def test_lr_assigned_between_replays_reaches_the_device(row):
    params = three()
    opt = row.build(OURS, params)
    schedule = exponential(opt)
    recording = record(opt, params)
    reference, theirs, expected = alone(row, 0)
    for lr in (None, 0.5, None, 0.125):
        recording.replay()
        set_grads(theirs, 0)
        reference.step()
        expected.step()
        assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
        if lr is not None:
            opt.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = lr
            opt.param_groups[0]["weight_decay"] = reference.param_groups[0]["weight_decay"] = lr
    check(params, theirs)
    assert schedule.last_epoch == 4


def test_lr_assigned_without_a_look_between_replays():
    """The write comes first; the scheduled values that were not assigned stay the device's."""
    params = three()
    opt = OURS.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=1.0)
    schedule = exponential(opt)
    recording = record(opt, params)
    recording.replay(2)
    opt.param_groups[0]["lr"] = 8.0
    recording.replay()
    assert [group["lr"] for group in opt.param_groups] == [4.0, 0.125]
    assert schedule.last_epoch == 3


def test_schedulers_of_torch_write_between_replays():
    params = three()
    opt = MOMENTUM.build(OURS, params)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    opt.prepare()
    recording = record(opt, params)
    for _ in range(3):
        recording.replay()
        schedule.step()
    reference, theirs, _ = alone(MOMENTUM, 3)
    check(params, theirs)
    assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


def test_an_explicit_scheduler_may_be_captured():
    params = three()
    opt = MOMENTUM.build(OURS, params)
    schedule = exponential(opt, fused=False)
    opt.prepare()
    set_grads(params, 0)
    recording = Recording()
    with recording.made():
        opt.step()
        schedule.step()
    recording.replay(3)
    reference, theirs, expected = alone(MOMENTUM, 3)
    check(params, theirs)
    assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]
    assert schedule.last_epoch == expected.last_epoch


def test_two_recordings_may_be_replayed_in_turn():
    """Each has its own gradients' addresses, both the same state and schedule."""
    params = three()
    opt = ADAM.build(OURS, params)
    schedule = exponential(opt)
    recordings = [record(opt, params, step) for step in (0, 1)]
    theirs = three()
    reference = stock(ADAM, theirs)
    expected = torch.optim.lr_scheduler.ExponentialLR(reference, 0.5)
    for turn in (0, 1, 1, 0, 1):
        recordings[turn].replay()
        train(reference, theirs, [turn])
        expected.step()
    check(params, theirs)
    assert schedule.last_epoch == 5
    assert opt.param_groups[0]["lr"] == reference.param_groups[0]["lr"]


def test_recordings_survive_eager_steps_with_other_gradients():
    """Other addresses and other dtypes later on do not reach the tables of a capture."""
    params = [SHAPES[9].build(torch.bfloat16), SHAPES[7].build()]
    params[0].grad_dtype = None
    opt = ADAM.build(OURS, params)
    opt.prepare()
    grads = [gradient(p, 0) for p in params]
    recording = record(opt, params, 0)
    params[0].grad, params[1].grad = grads[0].float(), None
    opt.step()
    recording.replay()
    theirs = [SHAPES[9].build(torch.bfloat16), SHAPES[7].build()]
    reference = stock(ADAM, theirs)
    for second in (None, grads[1]):
        theirs[0].grad, theirs[1].grad = grads[0], second
        reference.step()
    check(params, theirs)
    assert [float(opt.state[p]["step"]) for p in params] == [2, 1]


# -- after a capture -----------------------------------------------------------------------------


def add_group(opt: Any) -> None:
    opt.add_param_group({"params": three()})


def append_group(opt: Any) -> None:
    opt.param_groups.append({**opt.param_groups[0], "params": three()})
    opt.step()


def move_param(opt: Any) -> None:
    param = opt.param_groups[0]["params"][0]
    param.data = param.data.clone()
    opt.step()


def fuse_another(opt: Any) -> None:
    exponential(opt)


def change_engine(opt: Any) -> None:
    with fused_sched.use_engine("eager"):
        opt.step()


@pytest.mark.parametrize(
    "change", **named([add_group, append_group, move_param, fuse_another, change_engine])
)
def test_what_changes_the_tables_waits_for_release_capture(change):
    params = three()
    opt = MOMENTUM.build(OURS, params)
    opt.prepare()
    recording = record(opt, params)
    groups = len(opt.param_groups)
    with pytest.raises(RuntimeError, match=r"release_capture\(\) once its graphs"):
        change(opt)
    del opt.param_groups[groups:]
    recording.replay()
    opt.release_capture()
    change(opt)
    train(opt, params, range(1))


@pytest.mark.parametrize(
    "id, name, value", [("SGD-plain", "momentum", 0.9), ("Adam-default", "amsgrad", True)]
)
def test_options_that_need_more_state_wait_for_release_capture(id, name, value):
    params = three()
    opt = case(id).build(OURS, params)
    opt.prepare()
    recording = record(opt, params)
    before = opt.param_groups[0][name]
    with pytest.raises(RuntimeError, match=r"needs more state.*release_capture"):
        opt.param_groups[0][name] = value
    assert opt.param_groups[0][name] == before
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0][name] = value
    with pytest.raises(RuntimeError, match=r"has more state.*release_capture"):
        opt.load_state_dict(saved)
    assert opt.param_groups[0][name] == before
    recording.replay()
    reference = case(id).build(torch.optim, theirs := three(), foreach=False)
    train(reference, theirs, [0])
    check(params, theirs)


def test_a_captured_lr_tensor_cannot_be_replaced():
    rate, params = torch.tensor(0.5), three()
    opt = OURS.SGD(params, lr=rate)
    opt.prepare()
    record(opt, params)
    with pytest.raises(RuntimeError, match=r"fill_\(0.25\)"):
        opt.param_groups[0]["lr"] = 0.25
    opt.param_groups[0]["lr"].fill_(0.25)
    opt.param_groups[0]["lr"] = rate
    assert opt.param_groups[0]["lr"] is rate


@pytest.mark.parametrize("row", **named(FEW))
def test_load_between_replays_keeps_addresses_and_takes_effect(row):
    source, theirs, expected = alone(row, 3)
    saved, position = copy.deepcopy(source.state_dict()), expected.state_dict()
    at = [p.detach().clone() for p in theirs]
    params = three()
    opt = row.build(OURS, params)
    schedule = exponential(opt)
    recording = record(opt, params)
    recording.replay(2)
    before = [v.data_ptr() for e in opt.state.values() for k, v in e.items() if k != "step"]
    memory = [p.buffer.memory.data_ptr() for p in opt._ledger.mirror.host.device_states.values()]
    opt.load_state_dict(saved)
    schedule.load_state_dict(position)
    for param, value in zip(params, at, strict=True):
        param.data.copy_(value)
    for _ in range(2):
        recording.replay()
        set_grads(theirs, 0)
        source.step()
        expected.step()
    check(params, theirs)
    after = [v.data_ptr() for e in opt.state.values() for k, v in e.items() if k != "step"]
    assert before == after
    assert memory == [
        p.buffer.memory.data_ptr() for p in opt._ledger.mirror.host.device_states.values()
    ]
    assert opt.param_groups[0]["lr"] == source.param_groups[0]["lr"]
    assert schedule.last_epoch == 5
    steps = [float(entry.get("step", 5)) for entry in opt.state.values()]
    assert steps == [5, 5, 5]


@pytest.mark.parametrize("row", **named(FEW))
def test_state_cleared_after_a_capture_starts_anew_in_place(row):
    params, theirs = three(), three()
    opt = row.build(OURS, params)
    opt.prepare()
    recording = record(opt, params)
    recording.replay(2)
    opt.state.clear()
    for param, other in zip(params, theirs, strict=True):
        param.data.copy_(other)
    set_grads(params, 1)
    opt.step()
    reference = stock(row, theirs)
    train(reference, theirs, [1])
    check(params, theirs)
    assert len(opt.state) == 3
    assert [float(e.get("step", 1)) for e in opt.state.values()] == [1, 1, 1]


def test_a_release_forgets_the_tables_and_keeps_the_values():
    params = three()
    opt = MOMENTUM.build(OURS, params)
    schedule = exponential(opt)
    recording = record(opt, params)
    recording.replay(2)
    opt.release_capture()
    assert all(
        not device_state.captured_tables
        for device_state in opt._ledger.mirror.host.device_states.values()
    )
    assert opt.param_groups[0]["lr"] == MOMENTUM.kwargs["lr"] / 4
    train(opt, params, [0])
    check(params, alone(MOMENTUM, 3)[1])
    assert schedule.last_epoch == 3


def test_an_overflow_in_a_recording_moves_nothing():
    params = three()
    opt = case("Adam-default").build(OURS, params, fused=True)
    schedule = exponential(opt)
    opt.prepare()
    opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    before = [p.clone() for p in params]
    recording = record(opt, params)
    recording.replay(2)
    assert all(map(torch.equal, params, before))
    assert schedule.last_epoch == 0
    opt.found_inf.zero_()
    recording.replay(2)
    assert schedule.last_epoch == 2
    assert [float(e["step"]) for e in opt.state.values()] == [2, 2, 2]
