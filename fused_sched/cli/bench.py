"""``python -m fused_sched bench``: this package's step beside stock torch's, on this machine."""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fused_sched
from fused_sched.engines import choose, engine_for

from .checks import capture, new_graph
from .doctor import device_names
from .shapes import Shapes, of_checkpoint, transformer

ROUNDS = 5  # at least, whatever the time
BATCH_SECONDS = 0.02
MOST_STEPS = 1000
BUSY = 0.5  # programs that run, on the average of a minute
BASELINE = "torch fused"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATES = {"SGD": 1, "Adam": 2, "AdamW": 2}
"""Tensors that an optimizer keeps for each param."""

Params = Sequence[torch.nn.Parameter]
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


# -- what is timed -------------------------------------------------------------------------------


def steps_of(name: str, params: Params) -> dict[str, Step]:
    """``opt.step(); sched.step()`` in every way, all on the same params."""
    ours = fused_sched.optim, fused_sched.lr_scheduler
    stock = torch.optim, torch.optim.lr_scheduler
    steps = {
        "torch default": _explicit(*stock, name, params),
        BASELINE: _explicit(*stock, name, params, fused=True),
        "fused_sched": _explicit(*ours, name, params),
        "fused_sched, fused schedule": _fused(name, params),
    }
    device = params[0].device
    if device.type == "cuda" and engine_for(device).NAME != "eager":
        steps["fused_sched, in a graph"] = _captured(name, params)
    return steps


def _pair(
    optim: ModuleType, schedulers: ModuleType, name: str, params: Params, **options: Any
) -> tuple[Any, Any]:
    if name == "SGD":
        options["momentum"] = 0.9
    opt = getattr(optim, name)(params, lr=1e-6, **options)  # so small that nothing overflows
    return opt, schedulers.CosineAnnealingLR(opt, T_max=10_000_000)


def _explicit(
    optim: ModuleType, schedulers: ModuleType, name: str, params: Params, **options: Any
) -> Step:
    opt, sched = _pair(optim, schedulers, name, params, **options)

    def step() -> None:
        opt.step()
        sched.step()

    return step


def _fused_pair(name: str, params: Params) -> Any:
    opt, sched = _pair(fused_sched.optim, fused_sched.lr_scheduler, name, params)
    return fused_sched.fuse(opt, sched)[0]


def _fused(name: str, params: Params) -> Step:
    opt = _fused_pair(name, params)
    return lambda: opt.step()


def _captured(name: str, params: Params) -> Step:
    opt = _fused_pair(name, params)
    opt.prepare()
    graph = new_graph()
    with capture(graph, params[0].device):
        opt.step()
    return partial(_replay, graph, opt)


def _replay(graph: Any, opt: Any) -> None:
    """``opt`` stays alive: the graph uses its tables."""
    graph.replay()


def make_params(shapes: Shapes, device: torch.device) -> Params:
    """Params with gradients, random."""
    params = []
    for shape, dtype in shapes.specs:
        param = torch.nn.Parameter(torch.randn(shape, device=device).to(dtype))
        param.grad = torch.randn(shape, device=device).to(dtype)
        params.append(param)
    return params


# -- the clock -----------------------------------------------------------------------------------


def measure(steps: Mapping[str, Step], device: torch.device, seconds: float) -> list[Row]:
    """Every step once per round, in an order that changes, for as many rounds as there is time."""
    sizes = {name: _batch_size(step, device) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffler = list(steps), random.Random(0)
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        while len(samples[order[0]]) < ROUNDS or time.perf_counter() < end:
            shuffler.shuffle(order)
            for name in order:
                samples[name].append(_seconds(steps[name], sizes[name], device))
    finally:
        gc.enable()
    return [Row(name, found) for name, found in samples.items()]


def _batch_size(step: Step, device: torch.device) -> int:
    step()  # the first one allocates
    return max(1, min(MOST_STEPS, round(BATCH_SECONDS / _seconds(step, 1, device))))


def _seconds(step: Step, count: int, device: torch.device) -> float:
    """Seconds per call, after one that brings its data into the caches."""
    step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- memory --------------------------------------------------------------------------------------


def refuse_too_big(shapes: Shapes, optimizer: str, device: torch.device) -> None:
    """Raise for what would not fit: each way to step has states of its own."""
    ways = 5 if device.type == "cuda" else 4
    needed = shapes.bytes * (2 + ways * STATES[optimizer])
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{shapes.name}: {shapes.count:,} params and {ways} optimizers' states need "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; name one shard of the "
            "checkpoint, or a smaller one"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process can take now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines)
    return int(found["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in found else None


# -- the command ---------------------------------------------------------------------------------


def as_text(rows: Sequence[Row]) -> str:
    """The table: median time, where the middle 60 % lie, and the ratio to torch's fused step."""
    (baseline,) = (row for row in rows if row.name == BASELINE)
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}  {'median':>9}  {'20 to 80 %':>21}  {'to ' + BASELINE:>14}"]
    for row in rows:
        low, *_, high = statistics.quantiles(row.seconds, n=5, method="inclusive")
        spread = f"{_time(low)} - {_time(high)}"
        median = _time(statistics.median(row.seconds))
        lines.append(
            f"{row.name:<{width}}  {median:>9}  {spread:>21}  {row.ratio(baseline):>14.2f}"
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def bench(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    device = _device(arguments.device)
    shapes = of_checkpoint(arguments.like) if arguments.like else transformer()
    shapes = shapes.cast(DTYPES[arguments.dtype]) if arguments.dtype else shapes
    refuse_too_big(shapes, arguments.optimizer, device)
    print(_heading(shapes, arguments.optimizer, device), flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before our own
    params = make_params(shapes, device)
    rows = measure(steps_of(arguments.optimizer, params), device, arguments.seconds)
    print(as_text(rows))
    print(f"{len(rows[0].seconds)} rounds, every row once in each{_doubts(load)}")
    return 0


def _doubts(load: float) -> str:
    """What to think of the numbers on a machine that others use too."""
    if load < BUSY:
        return ""
    return f"; load average {load:.1f} before the start: other programs are in these numbers"


def _device(name: str | None) -> torch.device:
    default = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name or default)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    where = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if where not in device_names():
        raise ValueError(f"{name} is not here; expected one of {', '.join(device_names())}")
    return torch.device(where)


def _heading(shapes: Shapes, optimizer: str, device: torch.device) -> str:
    dtypes = dict.fromkeys(str(dtype).removeprefix("torch.") for _, dtype in shapes.specs)
    left_out = f" (others: {shapes.left_out})" if shapes.left_out else ""
    return (
        f"{optimizer} and CosineAnnealingLR on {shapes.name}: {shapes.count:,} params in "
        f"{len(shapes.specs)} tensors{left_out}, {', '.join(dtypes)}\n"
        f"{device} ({device_names()[str(device)]}), torch {torch.__version__}, engine "
        f"{engine_for(device).NAME} ({choose.why(device)})\n"
    )


def _duration(text: str) -> float:
    seconds = float(text)
    if not 0.0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no duration")
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="take the params' shapes and dtypes from a checkpoint: .safetensors, its "
        ".index.json, or a state dict of torch.save (default: a small transformer)",
    )
    parser.add_argument("--optimizer", choices=sorted(STATES), default="AdamW", help="(AdamW)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of all params")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--seconds", type=_duration, default=10.0, help="to measure, at least 5 rounds (10)"
    )
    parser.set_defaults(run=bench)
