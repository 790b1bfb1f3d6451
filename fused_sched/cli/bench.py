"""``python -m fused_sched bench``: this package's step beside stock torch's, on this machine."""

from __future__ import annotations

import argparse
import inspect
import math
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fused_sched
from fused_sched import stock
from fused_sched.engines import choose, engine_for
from fused_sched.swap import OPTIMIZERS

from .checks import capture, new_graph
from .doctor import device_names
from .shapes import Shapes, of_checkpoint, transformer
from .timing import Row, Step, measure

ROUNDS = 5  # fewer are said to be too few
BUSY = 0.5  # programs that run, on the average of a minute
BASELINES = ("torch fused", "torch foreach")
"""What ratios refer to: of an optimizer that torch has no fused step of, the second."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = {cls.__name__: cls for cls in OPTIMIZERS.values()}

Params = Sequence[torch.nn.Parameter]


# -- what is timed -------------------------------------------------------------------------------


def steps_of(name: str, params: Params) -> dict[str, Step]:
    """``opt.step(); sched.step()`` in every way, all on the same params."""
    ours = fused_sched.optim, fused_sched.lr_scheduler
    theirs = stock, stock
    has_fused = "fused" in inspect.signature(getattr(stock, name)).parameters
    quickest: dict[str, Any] = {"fused" if has_fused else "foreach": True}
    steps = {
        "torch default": _explicit(*theirs, name, params),
        BASELINES[not has_fused]: _explicit(*theirs, name, params, **quickest),
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
    if "momentum" in OURS[name]._rule.columns:
        options["momentum"] = 0.9
    opt = getattr(optim, name)(params, lr=1e-6, **options)  # so small that nothing overflows
    return opt, schedulers.CosineAnnealingLR(opt, T_max=10_000_000)


def _explicit(
    optim: ModuleType, schedulers: ModuleType, name: str, params: Params, **options: Any
) -> Step:
    return _both(*_pair(optim, schedulers, name, params, **options))


def _fused_pair(name: str, params: Params) -> tuple[Any, Any]:
    opt, sched = _pair(fused_sched.optim, fused_sched.lr_scheduler, name, params)
    return fused_sched.fuse(opt, sched)


def _fused(name: str, params: Params) -> Step:
    return _both(*_fused_pair(name, params))


def _both(opt: Any, sched: Any) -> Step:
    def step() -> None:
        opt.step()
        sched.step()

    return step


def _captured(name: str, params: Params) -> Step:
    opt, _ = _fused_pair(name, params)
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


# -- memory --------------------------------------------------------------------------------------


def refuse_too_big(shapes: Shapes, optimizer: str, device: torch.device) -> None:
    """Raise for what would not fit: each way to step has states of its own."""
    ways = 5 if device.type == "cuda" else 4
    needed = shapes.bytes * (2 + ways * state_tensors(optimizer))
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"{shapes.name}: {shapes.count:,} params and {ways} optimizers' states need "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; name one shard of the "
            "checkpoint, or a smaller one"
        )


def state_tensors(name: str) -> int:
    """Of each param, with the options that are timed."""
    return sum(when in (True, "momentum") for when in OURS[name]._rule.states.values())


def free_bytes(device: torch.device) -> int | None:
    """Memory that a process can take now; None where that is unknown."""
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
    """The table: median time, where the middle 60 % lie, and the ratio to torch's quickest."""
    (baseline,) = (row for row in rows if row.name in BASELINES)
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}  {'median':>9}  {'20 to 80 %':>21}  {'to ' + baseline.name:>16}"]
    for row in rows:
        low, high = _outer_fifths(row.seconds)
        spread = f"{_time(low)} - {_time(high)}"
        median = _time(statistics.median(row.seconds))
        lines.append(
            f"{row.name:<{width}}  {median:>9}  {spread:>21}  {row.ratio(baseline):>16.2f}"
        )
    return "\n".join(lines)


def _outer_fifths(seconds: Sequence[float]) -> tuple[float, float]:
    if len(seconds) == 1:
        return seconds[0], seconds[0]
    low, *_, high = statistics.quantiles(seconds, n=5, method="inclusive")
    return low, high


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def bench(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    until = time.perf_counter() + arguments.seconds
    device = _device(arguments.device)
    shapes = of_checkpoint(arguments.like) if arguments.like else transformer()
    shapes = shapes.cast(DTYPES[arguments.dtype]) if arguments.dtype else shapes
    refuse_too_big(shapes, arguments.optimizer, device)
    print(_heading(shapes, arguments.optimizer, device), flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before our own
    params = make_params(shapes, device)
    rows = measure(steps_of(arguments.optimizer, params), device, until)
    print(as_text(rows))
    rounds = len(rows[0].seconds)
    print(f"{rounds} round{'s' * (rounds > 1)}, every row once in each{_doubts(rounds, load)}")
    return 0


def _doubts(rounds: int, load: float) -> str:
    """What to think of few rounds, and of a machine that others use too."""
    few = f"; fewer than {ROUNDS}: give it more --seconds" * (rounds < ROUNDS)
    busy = f"; load average {load:.1f} before the start: other programs are in these numbers"
    return few + busy * (load >= BUSY)


def _device(name: str | None) -> torch.device:
    default = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name or default)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    where = f"cuda:{device.index or 0}" if device.type == "cuda" else device.type
    if where not in device_names():
        raise ValueError(f"{name} is not available; expected one of {', '.join(device_names())}")
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
        raise argparse.ArgumentTypeError(f"{text} is not a duration")
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
    parser.add_argument("--optimizer", choices=sorted(OURS), default="AdamW", help="(AdamW)")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of all params")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--seconds", type=_duration, default=10.0, help="to take in all, one round at least (10)"
    )
    parser.set_defaults(run=bench)
