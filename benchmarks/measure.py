"""Timing by turns: every runner once per round, so that drift hits all of them alike."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.autograd import DeviceType

Key = TypeVar("Key", bound=Hashable)
Clock = Callable[[Callable[[], object], int, torch.device], float]
"""(step, number of calls, device) -> seconds per call"""

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Of the source, by type of device; beyond the last-level caches. An H200's has 60 MB, in which a
copy of 256 MiB would find a part of what it wants."""


@dataclass(frozen=True)
class Runner:
    """One thing to time.

    `context` is entered around each batch of calls, outside the clock. `alive` is what `step` needs
    but does not hold: an optimizer refers to its schedulers weakly.
    """

    step: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    alive: object = None


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` batches a runner, each of about `batch_seconds`."""

    rounds: int
    batch_seconds: float
    max_steps: int = 1000


@dataclass(frozen=True)
class Spread:
    """Median and the 20th and 80th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of at least one sample."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, _, _, high = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(statistics.median(samples), low, high)

    def fields(self, name: str, digits: int) -> dict[str, Any]:
        """As a row of results has them: `name`, `name`_low and `name`_high, rounded."""
        return {
            name: round(self.median, digits),
            f"{name}_low": round(self.low, digits),
            f"{name}_high": round(self.high, digits),
        }


def device_seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds per call of `step`, over `steps` calls.

    On CUDA between two events: the GPU's own clock, with the gaps in which it waits for the host.
    The device is idle when the first event is recorded, so that gap counts as well.
    """
    if device.type != "cuda":
        return host_seconds(step, steps, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3 / steps


def host_seconds(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds per call of `step` on the host, which does not wait for the work of a GPU.

    It does wait once about a thousand launches are under way: keep to fewer in a batch.
    """
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    runners: Mapping[Key, Runner],
    device: torch.device,
    effort: Effort,
    clock: Clock = device_seconds,
) -> dict[Key, list[float]]:
    """Seconds per call of each runner, one sample per round; sample i of all belong together.

    The order changes from round to round. Each batch starts with one call that is not timed, which
    brings the runner's own data back into the caches; not so a step that fills a batch alone,
    since what it needs at its start it has itself driven out by its end.
    """
    steps = {key: batch_size(runner, device, effort, clock) for key, runner in runners.items()}
    samples: dict[Key, list[float]] = {key: [] for key in runners}
    order, shuffler = list(runners), random.Random(0)
    with no_garbage_collection():
        for _ in range(effort.rounds):
            shuffler.shuffle(order)
            for key in order:
                warm = steps[key] > 1
                samples[key].append(time_batch(runners[key], steps[key], device, clock, warm))
    return samples


def time_batch(runner: Runner, steps: int, device: torch.device, clock: Clock, warm: bool) -> float:
    """Seconds per call of `runner.step`; if `warm`, after one call that is not timed."""
    with runner.context():
        if warm:
            runner.step()
        return clock(runner.step, steps, device)


def batch_size(runner: Runner, device: torch.device, effort: Effort, clock: Clock) -> int:
    """How many calls take about `effort.batch_seconds`."""
    seconds = time_batch(runner, 1, device, clock, warm=True)
    return max(1, min(effort.max_steps, round(effort.batch_seconds / seconds)))


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Round by round."""
    return [mine / theirs for mine, theirs in zip(seconds, baseline, strict=True)]


def release(device: torch.device) -> None:
    """Give a finished model's memory back: schedulers and optimizers are reference cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect before, not during."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def copy_runner(device: torch.device) -> Runner:
    """A copy of COPY_BYTES: the rate at which this machine moves memory, by torch's own kernel."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Runner(lambda: target.copy_(source))


def copy_rate(seconds: float, device: torch.device) -> float:
    """GB/s of one `copy_runner` call: every byte is read once and written once.

    A CPU also reads the cache lines that the copy overwrites, uncounted. An update in place reads
    them anyway, so that on a CPU its rate can come out higher, up to 1.5 times.
    """
    return 2 * COPY_BYTES[device.type] / seconds / 1e9


def count_launches(runner: Runner, device: torch.device) -> int | None:
    """Kernels, copies and fills that one call puts on the GPU; None on a CPU, which has none."""
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with runner.context():
        runner.step()
        torch.cuda.synchronize(device)
        with torch.profiler.profile(activities=activities) as profile:
            runner.step()
            torch.cuda.synchronize(device)
    # An annotation such as "Optimizer.step#AdamW.step" has a shadow on the device's timeline.
    return sum(
        event.device_type == DeviceType.CUDA and not event.is_user_annotation
        for event in profile.events() or ()
    )
