"""Cached launches on CUDA, by the stand-in: made when nothing changed, and only then.

The device state of CPU tensors stands for a GPU's: its stream is noted as there, and the cached
launch asks the stand-in and the test's table of streams what it would ask CUDA and torch.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.engines.native_library import make_cached_launch
from fused_sched.runtime import cached_steps
from fused_sched.tables.device_buffer import DeviceBuffer
from fused_sched.tables.params import ParamTable
from tests.cuda_on_host import stand_in
from tests.cuda_on_host.stand_in import device_state_of, launched
from tests.test_cached import CHANGES, GRADS, Both, Run, lr, missing
from tests.test_cached_state import Held
from tests.training import named

STREAM = 7
"""A stream's handle."""


def made(both: Both) -> None:
    assert both.cached.step(both.ours.opt)


# -- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}], ids=str)
def test_cached_launches_are_one_launch_each_and_torchs_own(options):
    both = Both(**options)
    for _ in range(5):
        both.do(Run.backward)
        assert launched(lambda: made(both)) == 1
        both.stock.opt.step()
        both.stock.scheduler.step()
    both.check()


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_held_state_is_current_after_every_launch(name):
    both = Held(name)
    for _ in range(3):
        both.do(Run.backward)
        assert launched(lambda: made(both)) == 1
        both.stock.opt.step()
        both.stock.scheduler.step()
        both.check()


@pytest.mark.parametrize("change", **named(CHANGES))
@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_change_reaches_the_next_step(name, change):
    both = Both(name, **({"momentum": 0.9} if name == "SGD" else {}))
    assert both.cached is not None
    both.do(change)
    both.step(3)
    assert both.cached is not None
    both.check()
    both.step(3)
    both.check()


@pytest.mark.parametrize("change", **named(GRADS))
def test_gradient_of_any_kind(change):
    both = Both()

    def step(run: Run) -> None:
        run.backward()
        change(run)
        run.opt.step()
        if run.calls:
            run.scheduler.step()

    for _ in range(2):
        both.do(step)
        both.step()
        both.check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_storage_gets_the_whole_steps_bits(dtype):
    def run(cached: bool) -> list[Tensor]:
        torch.manual_seed(1)
        params = [Parameter(torch.randn(size).to(dtype)) for size in (1030, 3, 1, 0)]
        opt = fused_sched.optim.AdamW(params, lr=0.1)
        for _ in range(5):
            for param in params:
                param.grad = torch.randn(param.shape).to(dtype)
            opt.step()
            if not cached:
                opt._ledger.mirror.account.drop_cached()
        assert (opt._cached is not None) == cached
        return params

    assert all(map(torch.equal, run(True), run(False)))


def test_more_than_480_gradients_ride_as_well():
    params = [Parameter(torch.ones(1)) for _ in range(600)]
    opt = fused_sched.optim.SGD(params, lr=0.5)
    for _ in range(3):
        for number, param in enumerate(params):
            param.grad = torch.full((1,), number / 600)
        opt.step()
    assert opt._cached is not None
    torch.testing.assert_close(torch.cat(params).detach(), 1 - 1.5 * torch.arange(600) / 600)


# -- streams -------------------------------------------------------------------------------------


def test_launches_go_to_the_current_stream(streams):
    both = Both()
    for handle in (STREAM, STREAM, 9, STREAM):
        streams.current[0] = handle
        both.step(2)  # a full step, which waits, and a cached one
        assert stand_in.device().cuda_on_host_stream() == handle
        both.do(Run.backward)
        assert both.cached.step(both.ours.opt)
        both.stock.opt.step()
        both.stock.scheduler.step()
    assert streams.waits == [(STREAM, 0), (9, STREAM), (STREAM, 9)]
    both.check()


def test_value_sent_on_another_stream_is_waited_for(streams):
    both = Both()
    streams.current[0] = STREAM
    both.do(lr)
    assert streams.waits == [(STREAM, 0)]
    streams.current[0] = 0
    both.step()
    assert streams.waits == [(STREAM, 0), (0, STREAM)]
    both.do(lr)  # on the present stream: another object, the same handle
    both.do(Run.backward)
    made(both)


@pytest.mark.parametrize("streams", ["native"], indirect=True)
def test_threads_own_gpu_stays_without_a_context():
    """A GPU that nothing uses captures nothing; to ask it would make a context there."""
    both = Both()
    stand_in.device().cuda_on_host_forget_contexts()
    stand_in.device().cuda_on_host_device(1)
    stand_in.device().cuda_on_host_capture(0, None)
    both.do(Run.backward)
    made(both)
    assert stand_in.device().cuda_on_host_contexts() == 0b01


# -- the account ---------------------------------------------------------------------------------


@pytest.fixture
def no_fetch(monkeypatch) -> None:
    """What would wait for a GPU raises."""

    def refuse(buffer: DeviceBuffer) -> DeviceBuffer:
        raise AssertionError("the buffer was fetched")

    monkeypatch.setattr(DeviceBuffer, "fetch", refuse)


def test_state_is_read_without_waiting(no_fetch):
    both = Both()
    for number in range(6):
        both.do(Run.backward)
        if number % 3:
            both.do(missing)
        both.ours.opt.step()
        both.stock.opt.step()
        both.stock.scheduler.step()
    both.check()
    assert [float(both.ours.opt.state[p]["step"]) for p in both.ours.params] == [6, 10, 10]
    both.step(4)
    both.check()


@pytest.mark.parametrize("streams", ["native"], indirect=True)
def test_table_is_sent_once(monkeypatch):
    sent: list[int] = []
    send = ParamTable.send_addresses

    def count(table: ParamTable, grads: Any) -> None:
        sent.append(1)
        send(table, grads)

    monkeypatch.setattr(ParamTable, "send_addresses", count)
    both = Both()
    assert len(sent) == 1
    both.step(3)
    both.ours.opt.state_dict()
    both.step(3)
    assert len(sent) == 1


def test_cached_launches_of_a_copy_are_its_own():
    both = Both()
    ours = both.ours
    ours.params, ours.opt, ours.scheduler = copy.deepcopy((ours.params, ours.opt, ours.scheduler))
    both.step(4)
    both.check()


def test_it_is_no_cyclic_reference():
    both = Both()
    both.ours.opt._ledger.mirror.host.schedules.fused.clear()  # held strongly, by design
    opt = weakref.ref(both.ours.opt)
    gc.collect()
    gc.disable()
    try:
        both.ours.scheduler = both.ours.opt = None
        assert opt() is None
    finally:
        gc.enable()


def test_fields_of_another_size_are_refused():
    table: Callable[..., Any] = stand_in.module().CachedLaunch
    empty: tuple[Any, ...] = ([], (), b"", {}, {}, {}, 0, None, None)
    with pytest.raises(ValueError, match="fields of another size"):
        table(b"", {}, (1, 0), *empty)
    with pytest.raises(ValueError, match="facts of another size"):
        table(b"", {}, (1, 0), [], (), b"1", {}, {}, {}, 0, None, None)


def test_gpu_is_named_as_dlpack_names_it():
    both = Both()
    device_state = device_state_of(both.ours.opt)
    module = SimpleNamespace(CachedLaunch=lambda *arguments: arguments)
    buffer: Any = SimpleNamespace(device=torch.device("cuda", 3))
    ledger = both.ours.opt._ledger
    found = cached_steps._snapshot(
        ledger.mirror, ledger.keeper, device_state, ledger.placement.params
    )
    _, noted, device, *_ = make_cached_launch(module, b"", 3, buffer, device_state.table, found)
    assert device == (2, 3)
    assert noted["_last_stream"] is device_state._last_stream
