"""One side of ``run --compare``, in a process of its own: what a script's steps give and take."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fused_sched
from fused_sched import stock
from fused_sched.runtime.base import FusedOptimizer
from fused_sched.runtime.device_state import capturing
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.swap import OPTIMIZERS

from .children import swap_in_children
from .made import Made
from .script import execute

SAMPLE = 256
"""Elements of a param that are kept at each step: 30 MB for 100 steps of 150 params."""


class Enough(SystemExit):
    """Ends the script as ``sys.exit(0)`` does."""


class Recorder:
    """Values after the first steps, the time of as many more; then it ends the script."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.values: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no other optimizer gets the address of one
        self._inside = False

    def watch(self, optimizers: list[type], schedulers: list[type]) -> None:
        """Put the recording around their ``step``."""
        for cls in optimizers:
            cls.step = self._around_step(cls.step)  # type: ignore[attr-defined]
        for cls in schedulers:
            cls.step = self._around_schedule(cls.step)  # type: ignore[attr-defined]

    def _around_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def recorded(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside or capturing():
                return step(optimizer, *args, **kwargs)
            if len(self.seconds) >= self.steps:
                raise Enough(0)
            result, seconds = self._timed(step, optimizer, *args, **kwargs)
            if len(self.values) < self.steps:
                self._keep_values(optimizer)
            else:
                self.seconds.append(seconds)
            return result

        return recorded

    def _around_schedule(self, step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def recorded(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside or capturing():
                return step(scheduler, *args, **kwargs)
            result, seconds = self._timed(step, scheduler, *args, **kwargs)
            if self.seconds:
                self.seconds[-1] += seconds  # it belongs to the optimizer's step before it
            return result

        return recorded

    def _timed(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, float]:
        _wait()
        self._inside = True  # what a step calls in turn is part of it
        start = time.perf_counter()
        try:
            result = step(*args, **kwargs)
        finally:
            self._inside = False
        _wait()
        return result, time.perf_counter() - start

    def _keep_values(self, optimizer: Any) -> None:
        number = self._numbers.setdefault(id(optimizer), len(self._numbers) + 1)
        self._kept.append(optimizer)
        groups = optimizer.param_groups
        rates = [float(group["lr"]) for group in groups]
        self.values.append(
            {
                "optimizer": f"{type(optimizer).__name__} {number}",
                "lr": torch.tensor(rates, dtype=torch.float64, device="cpu"),
                "params": [[_sample(param) for param in group["params"]] for group in groups],
            }
        )


def _wait() -> None:
    """Until the GPU has done what it was given: its time counts, not only the launch's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@torch.no_grad()
def _sample(param: Tensor) -> Tensor:
    """Float64: elements at even distances, and the norm of all."""
    flat = param.detach().flatten()
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    picked = flat[:: max(flat.numel() // SAMPLE, 1)].to("cpu", torch.float64)
    return torch.cat([picked, flat.norm(dtype=torch.float64).reshape(1).cpu()])


def _watch_stock(recorder: Recorder) -> None:
    optimizers: list[Any] = list(OPTIMIZERS)
    for cls in optimizers:
        if "step" in vars(cls):
            cls.step = stock.Optimizer.profile_hook_step(cls.step)
            cls.step.hooked = True
    schedulers = [cls for cls in stock.SCHEDULERS.values() if "step" in vars(cls)]
    recorder.watch([cls for cls in optimizers if "step" in vars(cls)], schedulers)


def _watch_ours(recorder: Recorder, fuse: bool) -> None:
    fused_sched.swap()
    if fuse:
        Made(keep=False, fuse=True)
    swap_in_children(fuse)
    recorder.watch([FusedOptimizer], [DeviceScheduler])


def main() -> int:
    """Run a script beside which another process runs it on the other side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("stock", "ours"))
    parser.add_argument("steps", type=int)
    parser.add_argument("record", help="file that the record is written to")
    parser.add_argument("--fuse", action="store_true")
    parser.add_argument("-m", dest="module", action="store_true")
    parser.add_argument("script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    recorder = Recorder(given.steps)
    if given.side == "stock":
        _watch_stock(recorder)
    else:
        _watch_ours(recorder, given.fuse)
    try:
        return execute(given.script, given.arguments, given.module)
    finally:
        torch.save({"values": recorder.values, "seconds": recorder.seconds}, given.record)


if __name__ == "__main__":
    sys.exit(main())
