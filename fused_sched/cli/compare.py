"""``run --compare``: a script's first steps beside the same steps of stock torch."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SHOWN = 4000
"""Characters of a failed script's output."""


def compare(arguments: argparse.Namespace) -> int:
    """Run the script on both sides and print how they differ; its status where it fails."""
    records = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("stock", "ours"):
            status, output, record = _run(side, arguments, Path(folder))
            if status != 0 or record is None:
                print(output[-_SHOWN:], file=sys.stderr)
                print(f"the script ended with status {status} on the side {side}", file=sys.stderr)
                return status or 1
            records[side] = record
    print(report(records["stock"], records["ours"]))
    return 0


def _run(
    side: str, arguments: argparse.Namespace, folder: Path
) -> tuple[int, str, dict[str, Any] | None]:
    """(exit status, output, record) of the script with that side's classes."""
    path = folder / side
    options = ["--fuse"] * arguments.fuse + ["-m"] * arguments.module
    command = [sys.executable, "-m", "fused_sched.cli.record", side, str(arguments.compare)]
    command += [str(path), *options, arguments.script, *arguments.arguments]
    with open(folder / f"{side}.txt", "w+b") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        output.seek(0)
        text = output.read().decode(errors="replace")
    return status, text, torch.load(path) if path.exists() else None


def report(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The largest differences and the times of two records."""
    pairs = list(zip(theirs["values"], ours["values"]))
    if not pairs:
        return "no step of an optimizer of fused_sched.optim was made; there is nothing to compare"
    lines = [f"{len(pairs)} optimizer steps compared with stock torch's"]
    if len(theirs["values"]) != len(ours["values"]):
        steps = [len(side["values"]) for side in (theirs, ours)]
        lines.append(f"stock made {steps[0]} steps, fused_sched {steps[1]}")
    strange = next((i for i, pair in enumerate(pairs) if _shape(pair[0]) != _shape(pair[1])), None)
    if strange is not None:
        lines.append(f"step {strange + 1} steps other params than stock's: from there nothing can")
        lines.append("be compared; is the script the same from run to run?")
        pairs = pairs[:strange]
    if pairs:
        lines += [_largest("params", _params(pairs)), _largest("lr", _lrs(pairs))]
    return "\n".join([*lines, _times(theirs["seconds"], ours["seconds"])])


def _shape(values: dict[str, Any]) -> list[list[int]]:
    return [[param.numel() for param in group] for group in values["params"]]


Found = Iterator[tuple[Tensor, Tensor, str]]


def _params(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Found:
    for step, (stock, ours) in enumerate(pairs, start=1):
        for group, both in enumerate(zip(stock["params"], ours["params"])):
            for number, (theirs, mine) in enumerate(zip(*both)):
                yield (
                    theirs,
                    mine,
                    f"step {step}, {ours['optimizer']}, group {group}, param {number}",
                )


def _lrs(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Found:
    for step, (stock, ours) in enumerate(pairs, start=1):
        yield stock["lr"], ours["lr"], f"step {step}, {ours['optimizer']}"


def _largest(what: str, found: Found) -> str:
    """The line about the largest difference; one that is no number is larger than any other."""
    worst, size, where = -1.0, 0.0, ""
    for theirs, mine, place in found:
        if theirs.numel() == 0:
            continue
        apart = (mine - theirs).abs()
        apart[mine.eq(theirs) | (mine.isnan() & theirs.isnan())] = 0.0
        apart = apart.nan_to_num(nan=float("inf"))
        if float(apart.max()) > worst:
            worst, size, where = float(apart.max()), float(theirs.abs().max()), place
    if worst <= 0.0:
        return f"{what}: no difference"
    return f"{what}: largest difference {worst:.1e}, beside values up to {size:.1e} ({where})"


def _times(stock: list[float], ours: list[float]) -> str:
    if not stock or not ours:
        return "time: the script ended before a step could be timed"
    theirs, mine = (statistics.median(side) * 1e6 for side in (stock, ours))
    return (
        f"time of opt.step() and sched.step(), median of {min(len(stock), len(ours))}: "
        f"stock {theirs:,.1f} us, fused_sched {mine:,.1f} us"
    )
