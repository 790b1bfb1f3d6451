"""Torch's hooks on a graph's replay and end, from 2.14 on; a recording stands for a graph."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.hooks import RemovableHandle

import fused_sched
from fused_sched.runtime import captures, mirror
from fused_sched.runtime.captures import OPEN
from fused_sched.tables.device_buffer import DeviceBuffer
from tests.recording import Recording
from tests.training import OURS, case, set_grads, stock, three

pytestmark = pytest.mark.usefixtures("launch_engine", "whole_steps")

ADAM = case("Adam-weight_decay")


class Graph(Recording):
    """A recording with the hooks of torch's CUDAGraph, which torch tells ``OPEN`` of."""

    def __init__(self) -> None:
        super().__init__()
        self._hooks: OrderedDict[int, Callable] = OrderedDict()
        self._callbacks: OrderedDict[int, Callable] = OrderedDict()
        weakref.finalize(self, _run_all, self._callbacks)

    def register_replay_end_hook(self, hook: Callable) -> RemovableHandle:
        return _registered(self._hooks, hook)

    def register_destroy_callback(self, callback: Callable) -> RemovableHandle:
        return _registered(self._callbacks, callback)

    @contextmanager
    def made(self) -> Iterator[None]:
        OPEN.begun(self)
        with super().made():
            yield
        OPEN.ended(self)

    def replay(self, times: int = 1) -> None:
        for _ in range(times):
            try:
                super().replay()
            finally:
                for hook in list(self._hooks.values()):
                    hook(self)

    def reset(self) -> None:
        self._launches.clear()
        _run_all(self._callbacks)


def _registered(hooks: OrderedDict, hook: Callable) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def _run_all(callbacks: OrderedDict) -> None:
    for callback in list(callbacks.values()):
        callback()
    callbacks.clear()


class Pair:
    """Ours with a fused schedule, and stock torch beside it."""

    def __init__(self, build: Callable[[Any, Any], Any], interval: int | None = None) -> None:
        self.params, self.theirs = three(), three()
        self.opt, self.stock = ADAM.build(OURS, self.params), stock(ADAM, self.theirs)
        self.sched = build(fused_sched.lr_scheduler, self.opt)
        self.stock_sched = build(torch.optim.lr_scheduler, self.stock)
        self.interval, self.steps = interval, 0
        fused_sched.fuse(self.opt, self.sched, interval=interval)
        set_grads(self.params, 0)
        self.opt.prepare()

    def capture(self, steps: int = 1, graph: Graph | None = None) -> Graph:
        graph = graph or Graph()
        graph.grads += [param.grad for param in self.params]
        with graph.made():
            for _ in range(steps):
                self.opt.step()
        return graph

    def follow(self, steps: int) -> None:
        """Stock torch makes what the replays did."""
        for _ in range(steps):
            set_grads(self.theirs, 0)
            self.stock.step()
            self.steps += 1
            if self.steps % (self.interval or 1) == 0:
                self.stock_sched.step()

    def check_lr_after(self, steps: int) -> None:
        """Stock torch makes some more; then the lr."""
        self.follow(steps)
        expected = self.stock.param_groups[0]["lr"]
        assert self.opt.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)

    def check(self) -> None:
        """lr, what the scheduler tells of itself, and the params."""
        expected = self.stock.param_groups[0]["lr"]
        assert self.opt.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        assert self.sched.get_last_lr() == pytest.approx(self.stock_sched.get_last_lr(), rel=1e-12)
        assert self.sched.last_epoch == self.stock_sched.last_epoch
        for mine, theirs in zip(self.params, self.theirs, strict=True):
            torch.testing.assert_close(mine, theirs)


def cosine(module: Any, opt: Any) -> Any:
    return module.CosineAnnealingLR(opt, 50)


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[DeviceBuffer]:
    """Every read of a device."""
    made: list[DeviceBuffer] = []
    fetch = DeviceBuffer.fetch

    def note(buffer: DeviceBuffer) -> DeviceBuffer:
        made.append(buffer)
        return fetch(buffer)

    monkeypatch.setattr(DeviceBuffer, "fetch", note)
    return made


# -- replays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval, steps", [(None, 1), (None, 3), (1, 1), (2, 3)])
def test_a_read_after_replays_asks_no_device(interval, steps, fetches):
    pair = Pair(cosine, interval)
    graph = pair.capture(steps)
    for times in (1, 3, 10):
        graph.replay(times)
        pair.check_lr_after(times * steps)
    pair.check()
    assert fetches == []


def test_a_read_after_many_replays_asks_no_device(fetches):
    """More than the host would repeat by torch's own code."""
    pair = Pair(cosine)
    graph = pair.capture()
    graph.replay(70)
    pair.follow(70)
    pair.check()
    assert fetches == []


def test_several_graphs_and_eager_steps_are_counted_together(fetches):
    pair = Pair(cosine, 1)
    one, three_steps = pair.capture(), pair.capture(3)
    one.replay(2)
    three_steps.replay(2)
    set_grads(pair.params, 0)
    pair.opt.step()
    one.replay()
    pair.follow(2 + 6 + 1 + 1)
    pair.check()
    assert fetches == []


def test_replays_of_other_threads_are_counted(fetches):
    pair = Pair(cosine)
    graph = pair.capture()

    def replay() -> None:
        for _ in range(500):
            for hook in list(graph._hooks.values()):
                hook(graph)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=replay) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert pair.sched.last_epoch == 2000
    assert fetches == []


def test_a_value_assigned_between_replays_is_built_upon(fetches):
    """Also the host's account: it has made the replays before the assignment first."""
    pair = Pair(lambda module, opt: module.ExponentialLR(opt, 0.5))
    graph = pair.capture()
    graph.replay(2)
    pair.follow(2)
    for opt in (pair.opt, pair.stock):
        opt.param_groups[0]["lr"] = 0.25
    graph.replay(2)
    pair.follow(2)
    pair.check()
    assert fetches == []


def test_an_attribute_changed_between_replays_is_followed(fetches):
    pair = Pair(lambda module, opt: module.ExponentialLR(opt, 0.5))
    graph = pair.capture()
    graph.replay(2)
    pair.follow(2)
    pair.sched.gamma = pair.stock_sched.gamma = 0.75
    graph.replay(3)
    pair.follow(3)
    pair.check()
    assert fetches == []


def test_a_graph_past_the_end_of_its_schedule_raises(fetches):
    pair = Pair(lambda module, opt: module.OneCycleLR(opt, max_lr=0.1, total_steps=5))
    graph = pair.capture()
    graph.replay(4)
    pair.follow(4)
    pair.check()
    assert fetches == []
    graph.replay(3)
    with pytest.raises(RuntimeError, match="ran past its end"):
        _ = pair.opt.param_groups[0]["lr"]


# -- where the device must be asked --------------------------------------------------------------


def test_more_steps_than_pay_are_asked_about(fetches, monkeypatch):
    pair = Pair(cosine)
    monkeypatch.setattr(mirror, "_MANY", 5)
    graph = pair.capture()
    graph.replay(5)
    pair.follow(5)
    pair.check()
    assert fetches == []
    graph.replay(6)
    pair.follow(6)
    pair.check()
    assert fetches


def test_a_replay_that_raised_is_not_counted(fetches):
    pair = Pair(cosine)
    graph = pair.capture()
    graph.replay(2)
    launches, graph._launches = graph._launches, [(_raise, (), {})]
    with pytest.raises(RuntimeError, match="launch"):
        graph.replay()
    graph._launches = launches
    graph.replay()
    pair.follow(3)
    pair.check()
    assert fetches


def _raise() -> None:
    raise RuntimeError("launch failed")


def test_a_graph_that_is_not_watched_is_asked_about(fetches):
    pair = Pair(cosine)
    pair.opt.watch_graphs = False
    graph = pair.capture()
    assert not graph._hooks and not graph._callbacks
    graph.replay(2)
    pair.follow(2)
    pair.check()
    assert fetches
    del graph
    with pytest.raises(RuntimeError, match="release_capture"):
        pair.opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})


def test_captures_at_the_same_time_are_asked_about(fetches):
    """Which of them holds the step is not known."""
    pair, other = Pair(cosine), Graph()
    thread = threading.Thread(target=OPEN.begun, args=(other,))
    thread.start()
    thread.join()
    graph = pair.capture()
    OPEN.ended(other)
    assert OPEN.graph() is None
    graph.replay(2)
    pair.follow(2)
    pair.check()
    assert fetches


def test_a_scaled_step_is_asked_about(fetches):
    pair = Pair(cosine, 1)
    pair.opt.grad_scale, pair.opt.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    pair.opt.prepare()
    graph = pair.capture()
    graph.replay(2)
    pair.opt.found_inf.fill_(1.0)
    graph.replay(3)
    pair.follow(2)
    assert pair.opt.param_groups[0]["lr"] == pytest.approx(pair.stock.param_groups[0]["lr"])
    assert fetches


@pytest.mark.parametrize("number", [1, 2])
def test_a_captured_schedulers_step_is_counted_two_are_asked_about(number, fetches):
    params, theirs = three(), three()
    opt, plain = ADAM.build(OURS, params), stock(ADAM, theirs)
    parts, plain_parts = fused_sched.lr_scheduler, torch.optim.lr_scheduler
    schedules = [parts.ExponentialLR(opt, 0.5), cosine(parts, opt)][:number]
    plain_schedules = [plain_parts.ExponentialLR(plain, 0.5), cosine(plain_parts, plain)][:number]
    set_grads(params, 0)
    opt.prepare()
    graph = Graph()
    with graph.made():
        opt.step()
        for sched in schedules:
            sched.step()
    for replays in (1, 3, 2):
        graph.replay(replays)
        for _ in range(replays):
            plain.step()
            for sched in plain_schedules:
                sched.step()
        told = opt.param_groups[0]["lr"], [sched.last_epoch for sched in schedules]
        expected = plain.param_groups[0]["lr"], [sched.last_epoch for sched in plain_schedules]
        assert told == (pytest.approx(expected[0], rel=1e-12), expected[1])
    assert bool(fetches) == (number == 2)


# -- the end of a graph --------------------------------------------------------------------------


def grown(pair: Pair) -> None:
    """What a captured graph forbids."""
    pair.opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    pair.stock.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})


@pytest.mark.parametrize("way", ["deleted", "reset"])
def test_the_last_graphs_end_releases_the_tables(way):
    pair = Pair(cosine)
    graphs = [pair.capture(), pair.capture()]
    graphs[0].replay(3)
    graphs[1].replay(1)
    pair.follow(4)
    for number in range(2):
        with pytest.raises(RuntimeError, match="release_capture"):
            grown(pair)
        graphs[0].reset() if way == "reset" else None
        del graphs[0]
        gc.collect()
        assert number or pair.opt._ledger.mirror.account.captured
    grown(pair)
    assert not pair.opt._ledger.mirror.account.captured
    pair.check()


def test_calls_govern_again_when_the_graph_is_gone(recwarn):
    pair = Pair(cosine)
    graph = pair.capture()
    graph.replay(2)
    pair.sched.step()
    assert "advances it by one" in str(recwarn.pop(UserWarning).message)
    del graph
    gc.collect()
    pair.follow(2)
    for _ in range(3):
        for opt, params in ((pair.opt, pair.params), (pair.stock, pair.theirs)):
            set_grads(params, 0)
            opt.step()
        pair.sched.step()
        pair.stock_sched.step()
        pair.check()
    assert not [one for one in recwarn.list if one.category is UserWarning]


def test_a_graph_that_was_reset_may_be_captured_again(fetches):
    pair = Pair(cosine)
    graph = pair.capture()
    graph.replay(2)
    graph.reset()
    pair.capture(2, graph)
    graph.replay(3)
    pair.follow(2 + 6)
    pair.check()
    assert len(graph._hooks) == 1


def test_a_graph_holds_neither_optimizer_nor_itself():
    pair = Pair(cosine)
    graph = pair.capture()
    optimizer, held = weakref.ref(pair.opt), weakref.ref(graph)
    del pair
    gc.collect()
    assert optimizer() is None
    graph.replay = graph._launches = None
    del graph
    assert held() is None


def test_a_release_of_ones_own_ends_the_watch(fetches):
    pair = Pair(cosine)
    graph = pair.capture()
    graph.replay()
    pair.opt.release_capture()
    assert not graph._hooks and not graph._callbacks
    assert pair.sched.last_epoch == 1


# -- torch's own hooks ---------------------------------------------------------------------------


def test_hooks_are_those_that_torch_has():
    """Torch 2.14's names; before, nothing tells of a capture."""
    watching = captures.watch_captures()
    has = hasattr(torch.cuda.CUDAGraph, "register_replay_end_hook")
    assert watching == has == hasattr(torch.cuda.CUDAGraph, "register_destroy_callback")
    assert watching or OPEN.graph() is None


def test_a_capture_that_failed_is_not_taken_for_the_next_one():
    failed, graph = Graph(), Graph()
    OPEN.begun(failed)  # its end is not told
    OPEN.begun(graph)
    assert OPEN.graph() is graph
    OPEN.ended(graph)
    assert OPEN.graph() is None
