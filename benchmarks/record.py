"""Where and with what a result was measured."""

import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import fused_sched
from benchmarks.result import RESULTS, ROOT


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
