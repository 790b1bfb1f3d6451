"""Times of several ways to do the same, taken by turns within a given time."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

BATCH_SECONDS = 0.02  # of one sample, or one step where that takes longer

Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One way to step: seconds per call, one sample a round."""

    name: str
    seconds: Sequence[float]

    def ratio(self, baseline: Row) -> float:
        """Median of the ratios of samples of the same round."""
        pairs = zip(self.seconds, baseline.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def measure(steps: Mapping[str, Step], device: torch.device, until: float) -> list[Row]:
    """Every step once per round, in an order that changes, for as many rounds as there is time.

    Args:
        steps: name -> what is timed.
        device: of the params.
        until: the time of the clock before which another round must end; the first one is made
            in any case.
    """
    for step in steps.values():
        step()  # the first one allocates
    gc.collect()
    gc.disable()
    try:
        rounds = _rounds(steps, device, until)
    finally:
        gc.enable()
    return [Row(name, [samples[name] for samples in rounds]) for name in steps]


def _rounds(
    steps: Mapping[str, Step], device: torch.device, until: float
) -> list[dict[str, float]]:
    """Seconds by name, of each round."""
    rounds: list[dict[str, float]] = []
    order, shuffler = list(steps), random.Random(0)
    taken = 0.0
    while not rounds or time.perf_counter() + taken <= until:
        start = time.perf_counter()
        shuffler.shuffle(order)
        rounds.append({name: _seconds(steps[name], device) for name in order})
        taken = time.perf_counter() - start
    return rounds


def _seconds(step: Step, device: torch.device) -> float:
    """Seconds per call, after one that brings its data into the caches.

    By the clock, not by a count of calls: on a busy machine they may slow down at any time.
    """
    step()
    _wait(device)
    start = now = time.perf_counter()
    done, count = 0, 1
    while now - start < BATCH_SECONDS:
        for _ in range(count):
            step()
        _wait(device)
        now = time.perf_counter()
        done += count
        count = done  # twice as many in all: few looks at the clock, and few waits
    return (now - start) / done


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
