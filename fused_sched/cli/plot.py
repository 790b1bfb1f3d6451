"""``python -m fused_sched plot``: schedules drawn in the terminal, or into a picture."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_sched.optim import FusedOptimizer
from fused_sched.runtime.fused_schedule import NO_FORM
from fused_sched.schedules.plot import draw, lines, matplotlib

from .expression import Call, build, groups_in, read
from .text_plot import render

LONGEST = 10_000_000
"""Steps that are drawn at most: 80 MB a param group."""

_SETTLING = 5 / 4
"""How far a schedule that comes to rest is shown beyond that point."""

_OTHERWISE = 100

_LENGTHS: dict[str, Callable[[Any], float]] = {
    "OneCycleLR": lambda s: s.total_steps,
    "CosineAnnealingLR": lambda s: s.T_max + 1,
    "CosineAnnealingWarmRestarts": lambda s: s.T_0 * (1 + s.T_mult + s.T_mult**2) + 1,
    "ConstantLR": lambda s: s.total_iters * _SETTLING + 2,
    "LinearLR": lambda s: s.total_iters * _SETTLING + 2,
    "PolynomialLR": lambda s: s.total_iters * _SETTLING + 2,
    "SWALR": lambda s: s.anneal_epochs * _SETTLING + 2,
    "StepLR": lambda s: 4 * s.step_size + 1,
    "MultiStepLR": lambda s: max(s.milestones, default=0) * _SETTLING + 2,
    "CyclicLR": lambda s: 2 * s.total_size + 1,
    "SequentialLR": lambda s: max(s._milestones, default=0) + length(s._schedulers[-1]),
    "ChainedScheduler": lambda s: max(map(length, s._schedulers)),
}
"""Steps after which one has seen a schedule."""


class _Groups(FusedOptimizer):
    """Param groups with what a schedule may move; no step is made."""

    def __init__(self, groups: Any, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"momentum": momentum, "weight_decay": weight_decay})

    @staticmethod
    def coefficients(lr: Any, momentum: Any, weight_decay: Any, step: Any) -> Any:
        return ()

    @staticmethod
    def rule(p: Any, g: Any, c: Any) -> Any:
        return (p,)


def length(scheduler: Any) -> int:
    """``total_steps`` where a schedule has one; else until it repeats itself or comes to rest."""
    try:
        steps = _LENGTHS.get(type(scheduler).__name__, lambda _: _OTHERWISE)(scheduler)
        return max(int(steps), 2)
    except NO_FORM:  # arguments that torch refuses at the first step, and says so
        return _OTHERWISE


def curves(arguments: argparse.Namespace) -> dict[str, dict[str, Tensor]]:
    """The schedules' values: expression -> hyperparameter -> ``[n, groups]``."""
    found = {}
    for text in arguments.schedules:
        call = read(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # SequentialLR steps before any optimizer
            scheduler = build(call, _optimizer(call, arguments))
        found[str(call)] = _values(scheduler, arguments.steps)
    return found


def _values(scheduler: Any, steps: int | None) -> dict[str, Tensor]:
    n = length(scheduler) if steps is None else steps
    if n > LONGEST:
        raise ValueError(f"{n:,} steps are too many to draw; pass fewer with --steps")
    try:
        return scheduler.values(n)
    except NO_FORM as error:
        raise ValueError(f"{type(scheduler).__name__}: {error}") from error


def _optimizer(call: Call, arguments: argparse.Namespace) -> Any:
    """An optimizer with momentum and as many groups as the schedule asks for."""
    rates = arguments.lr
    count = max(groups_in(call), len(rates))
    if len(rates) not in (1, count):
        raise ValueError(f"--lr has {len(rates)} values for {count} param groups")
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1, device="cpu"))], "lr": rates[i % len(rates)]}
        for i in range(count)
    ]
    return _Groups(groups, arguments.momentum, arguments.weight_decay)


def as_text(found: dict[str, dict[str, Tensor]]) -> str:
    """A panel of characters for each hyperparameter."""
    names = dict.fromkeys(name for values in found.values() for name in values)
    return "\n\n".join(
        render(name, {label: line.tolist() for label, line in lines(found, name).items()})
        for name in names
    )


def save(found: dict[str, dict[str, Tensor]], path: str) -> None:
    """A picture, in the format that the name ends with."""
    figure = matplotlib("figure").Figure(figsize=(8, 5), layout="constrained")
    draw(figure, found)
    figure.savefig(path, dpi=150)


def picture(name: str) -> str:
    """The file to write: a .png, if the name does not say otherwise."""
    if not name:
        raise ValueError("-o takes the name of a file")
    return name if Path(name).suffix else f"{name}.png"


def plot(arguments: argparse.Namespace) -> int:
    """Draw in the terminal, or into the file asked for."""
    found = curves(arguments)
    if arguments.output is None:
        print(as_text(found))
    else:
        path = picture(arguments.output)
        save(found, path)
        print(f"wrote {path}")
    return 0


def rates(text: str) -> list[float]:
    """``0.1`` or ``0.1,0.02``: one lr for all groups, or one for each."""
    return [float(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "schedules",
        nargs="+",
        metavar="SCHEDULE",
        help="a scheduler as in code, without its optimizer: 'CosineAnnealingLR(T_max=100)', or "
        "'SequentialLR([LinearLR(0.1), ExponentialLR(0.9)], milestones=[5])'; arguments are "
        "literals, max_lr=[0.1, 0.2] means two param groups",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="draw into .png, .svg or .pdf")
    parser.add_argument(
        "--steps", type=int, help="values to draw (default: total_steps, or until it repeats)"
    )
    parser.add_argument(
        "--lr", type=rates, default=[0.1], help="the optimizer's lr, or a,b,... by group (0.1)"
    )
    parser.add_argument("--momentum", type=float, default=0.9, help="the optimizer's (0.9)")
    parser.add_argument(
        "--weight-decay", type=float, default=0.1, help="the optimizer's, for hyper= (0.1)"
    )
    parser.set_defaults(run=plot)
