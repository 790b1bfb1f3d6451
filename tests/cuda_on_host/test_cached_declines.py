"""Where a cached launch leaves the step to Python, and where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import native_cuda
from fused_sched.runtime.cached_steps import keep_step
from tests.cuda_on_host import stand_in
from tests.cuda_on_host.stand_in import Stream, Streams, device_state_of, launched
from tests.test_cached import Both, Run
from tests.training import named

STREAM = 7
"""A stream's handle."""


# -- where it declines ---------------------------------------------------------------------------


def capture(both: Both, streams: Streams) -> None:
    stand_in.device().cuda_on_host_capture(1, None)


def capture_of_the_present_stream(both: Both, streams: Streams) -> None:
    streams.current[0] = STREAM
    device_state_of(both.ours.opt)._last_stream = Stream(STREAM)
    stand_in.device().cuda_on_host_capture(1, STREAM)


def capture_on_the_threads_own_device(both: Both, streams: Streams) -> None:
    streams.current[1] = STREAM
    stand_in.device().cuda_on_host_device(1)
    stand_in.device().cuda_on_host_capture(1, STREAM)


def another_stream(both: Both, streams: Streams) -> None:
    streams.current[0] = STREAM


def work_on_another_stream(both: Both, streams: Streams) -> None:
    device_state_of(both.ours.opt)._last_stream = Stream(STREAM)


def no_stream_noted(both: Both, streams: Streams) -> None:
    device_state_of(both.ours.opt)._last_stream = None


def no_word_on_the_stream(both: Both, streams: Streams) -> None:
    del streams.current[0]


def no_word_on_the_threads_stream(both: Both, streams: Streams) -> None:
    del streams.current[1]
    stand_in.device().cuda_on_host_device(1)


def gradient_on_another_gpu(both: Both, streams: Streams) -> None:
    streams.claim(both.ours.params[1].grad, 1)


def param_on_another_gpu(both: Both, streams: Streams) -> None:
    streams.claim(both.ours.params[1], 1)


def gradient_of_another_dtype(both: Both, streams: Streams) -> None:
    both.ours.params[0].grad_dtype = None
    both.ours.params[0].grad = both.ours.params[0].grad.double()


def gradient_of_a_subclass(both: Both, streams: Streams) -> None:
    both.ours.params[0].grad = Parameter(both.ours.params[0].grad)


def sparse_gradient(both: Both, streams: Streams) -> None:
    both.ours.params[0].grad = both.ours.params[0].grad.to_sparse()


def negated_gradient(both: Both, streams: Streams) -> None:
    both.ours.params[2].grad = torch.ones(1, dtype=torch.complex64).conj().imag


def transposed_gradient(both: Both, streams: Streams) -> None:
    both.ours.params[0].grad = torch.randn(3, 5).t()


def moved_param(both: Both, streams: Streams) -> None:
    both.ours.params[0].data = both.ours.params[0].data.clone()


def replaced_param(both: Both, streams: Streams) -> None:
    both.ours.opt.param_groups[0]["params"][0] = Parameter(torch.ones(5, 3))


def replaced_group(both: Both, streams: Streams) -> None:
    both.ours.opt.param_groups[0] = dict(both.ours.opt.param_groups[0])


def scaled(both: Both, streams: Streams) -> None:
    both.ours.opt.grad_scale = torch.ones(1)


def found_inf(both: Both, streams: Streams) -> None:
    both.ours.opt.found_inf = torch.zeros(1)


def hooked(both: Both, streams: Streams) -> None:
    both.ours.opt.register_step_post_hook(lambda *_: None)


def profiled(both: Both, streams: Streams) -> None:
    torch.autograd.profiler._is_profiler_enabled = True


def another_engine(both: Both, streams: Streams) -> None:
    fused_sched.use_engine("eager")


DECLINES = [
    capture,
    capture_of_the_present_stream,
    capture_on_the_threads_own_device,
    another_stream,
    work_on_another_stream,
    no_stream_noted,
    no_word_on_the_stream,
    no_word_on_the_threads_stream,
    gradient_on_another_gpu,
    param_on_another_gpu,
    gradient_of_another_dtype,
    gradient_of_a_subclass,
    sparse_gradient,
    negated_gradient,
    transposed_gradient,
    moved_param,
    replaced_param,
    replaced_group,
    scaled,
    found_inf,
    hooked,
    profiled,
    another_engine,
]


@pytest.mark.parametrize("reason", **named(DECLINES))
def test_it_declines_and_does_nothing(reason, streams, monkeypatch):
    monkeypatch.setattr(torch.autograd.profiler, "_is_profiler_enabled", False)
    both = Both()
    both.do(Run.backward)
    opt, cached, memory = both.ours.opt, both.cached, device_state_of(both.ours.opt).buffer.memory
    assert cached.step(opt)
    assert cached.take()[0] > 0
    reason(both, streams)
    before = [t.clone() for t in (memory, *both.ours.params)]
    answers: list[bool] = []
    assert launched(lambda: answers.append(cached.step(opt))) == 0
    assert answers == [False]
    assert cached.take() == (0, {})
    assert all(map(torch.equal, before, (memory, *both.ours.params)))


@pytest.mark.parametrize("streams", ["native"], indirect=True)
def test_full_step_runs_after_a_launch_that_failed(monkeypatch):
    both = Both()
    both.ours.opt._ledger.mirror.account.drop_cached()
    monkeypatch.setattr(native_cuda, "_number", lambda device: 9)  # no such GPU
    both.step(2)
    assert both.cached is not None
    assert not both.cached.step(both.ours.opt)
    both.step()
    both.check()


def test_schedule_ends_with_torchs_error():
    """The launches until then are counted: the full step looks."""

    def steps(optim: Any, schedulers: Any) -> int:
        param = Parameter(torch.ones(1))
        opt = optim.SGD([param], lr=0.1, momentum=0.9)
        scheduler = schedulers.OneCycleLR(opt, max_lr=1.0, total_steps=8)
        ours = optim is fused_sched.optim
        if ours:
            fused_sched.fuse(opt, scheduler, interval=1)
        param.grad = torch.ones(1)
        for step in range(20):
            try:
                opt.step()
                if not ours:
                    scheduler.step()
            except ValueError as error:
                assert "Tried to step" in str(error)
                return step
            assert not ours or step < 1 or opt._cached is not None
        return -1

    ours = steps(fused_sched.optim, fused_sched.lr_scheduler)
    assert ours == steps(torch.optim, torch.optim.lr_scheduler) > 0


# -- where there is none -------------------------------------------------------------------------


def two_devices(both: Both) -> None:
    ledger = both.ours.opt._ledger
    ledger.mirror.host.device_states[torch.device("meta")] = device_state_of(both.ours.opt)


def captured_graph(both: Both) -> None:
    both.ours.opt._ledger.mirror.account.note_capture(None)


def skipped_by_a_scaler(both: Both) -> None:
    both.ours.opt._ledger.mirror.account.note_unknown()


def held_step_of_whole_numbers(both: Both) -> None:
    state = both.held = both.ours.opt.state  # type: ignore[attr-defined]
    state[both.ours.params[0]]["step"] = torch.tensor(4)
    both.step()


def lr_in_a_tensor(both: Both) -> None:
    both.ours.opt.param_groups[0]["lr"] = torch.tensor(0.1)


def lr_of_zero(both: Both) -> None:
    both.ours.opt.param_groups[0]["lr"] = 0.0


def param_with_gaps(both: Both) -> None:
    (row, *_) = device_state_of(both.ours.opt).table.rows
    row.staged_param = row.view.clone()


REASONS = [
    two_devices,
    captured_graph,
    skipped_by_a_scaler,
    held_step_of_whole_numbers,
    lr_in_a_tensor,
    lr_of_zero,
    param_with_gaps,
]


@pytest.mark.parametrize("reason", **named(REASONS))
def test_there_is_none(reason):
    both = Both()
    ledger = both.ours.opt._ledger
    keep_step(ledger.mirror, ledger.keeper, ledger.placement.params)
    assert both.cached is not None
    reason(both)
    for _ in range(2):  # the second would make one
        keep_step(ledger.mirror, ledger.keeper, ledger.placement.params)
        assert both.cached is None


@pytest.mark.parametrize("streams", ["native"], indirect=True)
def test_more_gradients_than_parameters_hold_take_whole_steps():
    params = [Parameter(torch.ones(1)) for _ in range(stand_in.module().CUDA_GRADIENTS + 1)]
    opt = fused_sched.optim.SGD(params, lr=0.5)
    for param in params:
        param.grad = torch.ones(1)
    for _ in range(3):
        opt.step()
    assert opt._cached is None
    assert set(torch.cat(params).tolist()) == {-0.5}


@pytest.mark.parametrize("streams", ["native"], indirect=True)
def test_explicit_schedule_makes_none_in_vain(monkeypatch):
    """Its step on the host changes what a cached launch relies on; making one would not pay."""
    calls: list[Any] = []
    monkeypatch.setattr(
        "fused_sched.engines.native_engine.cached_launch", lambda *_: calls.append(1)
    )
    both = Both(fused=False)
    both.step(3)
    assert calls == []
    both.check()
