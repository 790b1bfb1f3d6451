"""Timing by turns: every runner once per round, so that drift hits all of them alike."""

import datetime
import gc
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch.autograd import DeviceType

import fused_sched
from benchmarks.report import RESULTS, ROOT

COPY_BYTES = 256 * 2**20  # beyond the last-level cache of any machine we know


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


def time_steps(step: Callable[[], object], steps: int, device: torch.device) -> float:
    """Seconds per call of `step`, over `steps` calls.

    On CUDA between two events: the GPU's own clock, with the gaps in which it waits for the host.
    The device is idle when the first event is recorded, so that gap counts as well.
    """
    if device.type != "cuda":
        start_time = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - start_time) / steps
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(steps):
        step()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3 / steps


def interleave(
    runners: Mapping[str, Runner], device: torch.device, effort: Effort
) -> dict[str, list[float]]:
    """Seconds per call of each runner, one sample per round; sample i of all belong together.

    The order changes from round to round. Each batch starts with one call that is not timed, which
    brings the runner's own data back into the caches.
    """
    steps = {name: batch_size(runner, device, effort) for name, runner in runners.items()}
    samples: dict[str, list[float]] = {name: [] for name in runners}
    order, shuffler = list(runners), random.Random(0)
    with no_garbage_collection():
        for _ in range(effort.rounds):
            shuffler.shuffle(order)
            for name in order:
                samples[name].append(time_batch(runners[name], steps[name], device))
    return samples


def time_batch(runner: Runner, steps: int, device: torch.device) -> float:
    """Seconds per call of `runner.step`, after one call that is not timed."""
    with runner.context():
        runner.step()
        return time_steps(runner.step, steps, device)


def batch_size(runner: Runner, device: torch.device, effort: Effort) -> int:
    """How many calls take about `effort.batch_seconds`."""
    seconds = time_batch(runner, 1, device)
    return max(1, min(effort.max_steps, round(effort.batch_seconds / seconds)))


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
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Runner(lambda: target.copy_(source))


def copy_rate(seconds: float) -> float:
    """GB/s of one `copy_runner` call: every byte is read once and written once.

    A CPU also reads the cache lines that the copy overwrites, uncounted. An update in place reads
    them anyway, so that on a CPU its rate can come out higher, up to 1.5 times.
    """
    return 2 * COPY_BYTES / seconds / 1e9


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


@dataclass(frozen=True)
class Record:
    """Where and with what a result was measured.

    `load_average` is the machine's over the minute before: near zero, or others took part.
    """

    device: str
    threads: int
    python: str
    torch: str
    triton: str | None
    fused_sched: str
    commit: str | None
    load_average: float
    date: str


def record_here(device: torch.device) -> Record:
    """This machine, now."""
    return Record(
        device=device_name(device),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=installed_version("triton"),
        fused_sched=fused_sched.__version__,
        commit=commit(),
        load_average=round(os.getloadavg()[0], 2),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def device_name(device: torch.device) -> str:
    """For example `NVIDIA H200` or `AMD EPYC, 2 cores`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {os.cpu_count()} cores"


def cpu_model() -> str:
    """The CPU's name where Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated, or None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kibibytes[0] * 1024 if kibibytes else None


def installed_version(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The measured commit, `-dirty` where files differ from it; None outside a git checkout.

    Results do not count as files: those of one measurement would spoil the next one's record.
    """
    try:
        name = git("rev-parse", "--short", "HEAD")
        others = [".", f":!{RESULTS.relative_to(ROOT)}"]
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *others)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + "-dirty" * bool(changed)


def git(*arguments: str) -> str:
    """What a git command prints, run in the repository's root."""
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
