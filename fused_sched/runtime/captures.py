"""The graphs that captured an optimizer's steps: what their replays have done, and their end.

Torch reports both from 2.14 on, by hooks of ``torch.cuda.CUDAGraph``. Where it does not, and for
a step that the host could not follow, the device is asked and ``release_capture()`` must be called.
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import weakref
from typing import Any

import torch


class OpenCaptures:
    """The graphs that are being captured now, in this process."""

    def __init__(self) -> None:
        self._graphs: dict[int, weakref.ref[Any]] = {}  # by the thread that began the capture

    def begun(self, graph: Any) -> None:
        """Torch's hook; a thread's last capture may have failed, which no hook reports."""
        self._graphs[threading.get_ident()] = weakref.ref(graph)

    def ended(self, graph: Any) -> None:
        """Torch's hook."""
        for thread, reference in list(self._graphs.items()):
            if reference() is graph or reference() is None:
                self._graphs.pop(thread, None)

    def graph(self) -> Any:
        """The only graph that is being captured; None where that is not known.

        A step may run in another thread than its capture: backward's, by a hook of a gradient.
        """
        graphs = [reference() for reference in list(self._graphs.values())]
        return graphs[0] if len(graphs) == 1 else None

    def elsewhere(self) -> bool:
        """Whether a capture may be under way in another thread."""
        here = threading.get_ident()
        graphs = list(self._graphs.items())
        return any(thread != here and reference() is not None for thread, reference in graphs)


OPEN = OpenCaptures()


@functools.cache
def watch_captures() -> bool:
    """Have torch report every capture to ``OPEN``; False before torch 2.14, which cannot."""
    graphs: Any = torch.cuda.graphs
    if not hasattr(graphs, "register_graph_capture_start_hook"):
        return False
    graphs.register_graph_capture_start_hook(OPEN.begun)
    graphs.register_graph_capture_end_hook(OPEN.ended)
    return True


class Watched:
    """One graph, from its capture until it is reset or destroyed; it holds no reference to it.

    Attributes:
        advances: of each program of the schedules, in one replay.
        alive: whether it can be replayed.
        failed: whether a replay raised, so that it may have run or not.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = weakref.ref(graph)
        self.advances: dict[int, int] = {}
        self.alive = True
        self.failed = False
        self._draw = itertools.count().__next__  # one call of C, so that no thread's is lost
        self._drawn = 0
        self._hook = graph.register_replay_end_hook(self._replayed)
        self._callback = graph.register_destroy_callback(self._ended)

    def _replayed(self, _: Any) -> None:
        """A replay has been launched, or has raised: then torch calls this as it propagates."""
        self._draw()
        if sys.exc_info()[0] is not None:
            self.failed = True

    def _ended(self) -> None:
        """Runs wherever the last reference goes, also amid a step: takes no lock, frees nothing."""
        self.alive = False
        self._hook.remove()  # of a graph that was reset and may be captured anew

    def take(self) -> int:
        """The replays since the last call."""
        number = self._draw()
        replays, self._drawn = number - self._drawn, number + 1
        return replays

    def stop(self) -> None:
        """Remove the hooks."""
        self._hook.remove()
        self._callback.remove()


class Captures:
    """Every graph that captured a step of one optimizer, since its last release."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []
        self._unseen = False  # some step is in a graph whose replays are not reported
        self._unknown = False  # some step does what only the device knows
        watch_captures()

    def note(self, watch: bool, program: int | None) -> None:
        """A step, or a scheduler's, is being captured.

        Args:
            watch: the user's ``watch_graphs``.
            program: which one of the schedules' it advances by one; None where only the device
                knows what each replay does.
        """
        self._unknown = self._unknown or program is None
        graph = OPEN.graph() if watch else None
        if graph is None:
            self._unseen = True
            return
        here = next((one for one in self._watched if one.alive and one.graph() is graph), None)
        if here is None:
            here = Watched(graph)
            self._watched.append(here)
        if program is not None:
            here.advances[program] = here.advances.get(program, 0) + 1

    def counted(self) -> bool:
        """Whether every replay is counted, and does what the host can do again."""
        return not (self._unseen or self._unknown or any(one.failed for one in self._watched))

    def take(self) -> dict[int, int]:
        """The advances of each program in all replays since the last call, where counted."""
        taken: dict[int, int] = {}
        for one in self._watched:
            replays = one.take()
            for program, count in one.advances.items():
                taken[program] = taken.get(program, 0) + replays * count
        return taken

    def over(self) -> bool:
        """Whether no graph is left, and no capture under way that a release would disturb."""
        return not (self._unseen or OPEN.elsewhere() or any(one.alive for one in self._watched))

    def forget(self) -> None:
        """After a release: as if there had been none."""
        for one in self._watched:
            one.stop()
        self._watched, self._unseen, self._unknown = [], False, False
