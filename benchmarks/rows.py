"""What does a row of the schedule's program cost, in a replayed step of a tiny model?

    python -m benchmarks.rows [--quick]

The model is 10 tensors of 64 elements: its updates take less time than a schedule, so what a
scheduler adds to a replay is the time of its rows. Prints a table; needs a GPU.
"""

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import Parameter

import fused_sched
from benchmarks.command import new_parser
from benchmarks.providers import captured
from fused_sched.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
)

TENSORS, ELEMENTS = 10, 64
ENGINES = ("triton", "native")


def chained(count: int) -> Callable[[Any], Any]:
    """A scheduler of ``count`` children, each a row."""
    return lambda opt: ChainedScheduler([ExponentialLR(opt, 0.999) for _ in range(count)], opt)


SCHEDULES: dict[str, Callable[[Any], Any] | None] = {
    "none": None,
    "Exponential": chained(1),
    "2 x Exponential": chained(2),
    "4 x Exponential": chained(4),
    "16 x Exponential": chained(16),
    "Linear": lambda opt: LinearLR(opt, total_iters=1_000_000),
    "CosineAnnealing": lambda opt: CosineAnnealingLR(opt, 1_000_000),
    "OneCycle": lambda opt: OneCycleLR(opt, 0.1, total_steps=100_000_000),
}


def stepper(make: Callable[[Any], Any] | None, device: torch.device) -> Callable[[], None]:
    """A fused step over the tiny model, after the first."""
    params = [Parameter(torch.ones(ELEMENTS, device=device)) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    opt = fused_sched.optim.AdamW(params, lr=1e-3)
    if make is not None:
        fused_sched.fuse(opt, make(opt), interval=1)
    opt.prepare()
    opt.step()
    return opt.step


def microseconds(replay: Callable[[], object], replays: int) -> float:
    """Of one replay, many in a row."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(replays):
        replay()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / replays


def measure(device: torch.device, rounds: int, replays: int) -> dict[str, float]:
    """Schedule -> the median of its replays, all measured by turns."""
    steps = {name: stepper(make, device) for name, make in SCHEDULES.items()}  # a graph reads them
    replayed = {name: captured(step) for name, step in steps.items()}
    taken: dict[str, list[float]] = {name: [] for name in replayed}
    for _ in range(rounds):
        for name, replay in replayed.items():
            taken[name].append(microseconds(replay, replays))
    return {name: statistics.median(times) for name, times in taken.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure each engine that is available and print the table; without CUDA say so."""
    options = new_parser("Measure the rows of a schedule in a replay.").parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.rows: nothing measured, replays need a GPU and torch sees none")
        return 0
    device = torch.device("cuda", 0)
    for engine in ENGINES:
        try:
            with fused_sched.use_engine(engine):
                times = measure(device, 5 if options.quick else 25, 2000)
        except RuntimeError as error:
            print(f"{engine}: {error}", file=sys.stderr)
            continue
        for name, time in times.items():
            print(f"{engine:8} {name:18} {time:7.2f} us  {time - times['none']:+6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
