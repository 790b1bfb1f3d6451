"""What a script makes of our classes while it runs: counted, explained, fused."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import fused_sched
from fused_sched.runtime.base import FusedOptimizer
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.schedules.live import ledger_of
from fused_sched.swap import Swap


class Made:
    """Watches every optimizer and scheduler of ours that is made from now on.

    Args:
        keep: keep them, with their params, to the end, so that they can be explained.
        fuse: fuse each scheduler that steps by itself, when its optimizer steps next.
    """

    def __init__(self, keep: bool, fuse: bool) -> None:
        self.keep = keep
        self.fuse = fuse
        self.counts: Counter[str] = Counter()
        self.optimizers: list[Any] = []
        self._schedulers: list[Any] = []  # an optimizer knows its schedulers while they live
        self.refused: dict[str, str] = {}
        _after(FusedOptimizer, "__init__", self._see_optimizer)
        _after(DeviceScheduler, "_enroll", self._see_scheduler)

    def _see_optimizer(self, optimizer: Any) -> None:
        self.counts[type(optimizer).__name__] += 1
        if self.keep:
            self.optimizers.append(optimizer)

    def _see_scheduler(self, scheduler: Any) -> None:
        self.counts[type(scheduler).__name__] += 1
        if self.keep:
            self._schedulers.append(scheduler)
        if not self.fuse:
            return
        optimizer = scheduler.__dict__.get("optimizer")
        ledger = ledger_of(optimizer)
        if ledger is not None:
            before_next_step(ledger.mirror.host.optimizer, self._fuse_all)
        else:
            self.refused[type(scheduler).__name__] = (
                f"it is built on a {type(optimizer).__name__}, not on an optimizer of fused_sched"
            )

    def _fuse_all(self, optimizer: Any) -> None:
        """By now a composite has been made of the schedulers that are inside one."""
        schedules = optimizer._ledger.mirror.host.schedules
        for fused in list(schedules.fused):
            if schedules.is_inside(fused.scheduler):  # a composite took it since
                fused_sched.unfuse(optimizer, fused.scheduler)
        for scheduler in list(schedules.roots()):
            if schedules.find(scheduler) is None:
                try:
                    fused_sched.fuse(optimizer, scheduler)
                except (TypeError, ValueError, RuntimeError) as error:
                    self.refused[type(scheduler).__name__] = str(error)

    def report(self, swap: Swap) -> str:
        """What was swapped, how many of each were made, and what each optimizer does."""
        made = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        lines = [f"torch's names that meant ours: {_shortened(swap.names)}"]
        lines.append(f"made of them: {made or 'none'}")
        lines += [f"{name} was not fused: {why}" for name, why in self.refused.items()]
        for number, optimizer in enumerate(self.optimizers, start=1):
            lines.append(f"optimizer {number}, {type(optimizer).__name__}:")
            lines += [f"  {line}" for line in str(fused_sched.explain(optimizer)).splitlines()]
        return "\n".join(f"fused_sched: {line}" for line in lines)


def before_next_step(optimizer: Any, act: Callable[[Any], None]) -> None:
    """Call ``act(optimizer)`` at the start of its next ``step()``, once."""
    earlier = optimizer.__dict__.get("step")
    if hasattr(earlier, "_fused_sched_once"):
        return

    def step(*args: Any, **kwargs: Any) -> Any:
        if optimizer.__dict__.get("step") is step:
            del optimizer.__dict__["step"]
            if earlier is not None:
                optimizer.__dict__["step"] = earlier
            act(optimizer)
        # A framework may have kept this function: it goes on as if it were the one before it.
        return (earlier or type(optimizer).step.__get__(optimizer))(*args, **kwargs)

    step._fused_sched_once = step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.__dict__["step"] = step


def _after(cls: type, name: str, act: Callable[[Any], None]) -> None:
    """Let ``act(self)`` follow every call of a method."""
    method = getattr(cls, name)

    @functools.wraps(method)
    def followed(self: Any, *args: Any, **kwargs: Any) -> None:
        method(self, *args, **kwargs)
        act(self)

    setattr(cls, name, followed)


def _shortened(names: list[str]) -> str:
    """``torch.optim: AdamW SGD``, for the modules of which torch documents the names."""
    modules = ("torch.optim", "torch.optim.lr_scheduler", "torch.optim.swa_utils")
    found: dict[str, list[str]] = {module: [] for module in modules}
    for module, _, name in (full.rpartition(".") for full in names):
        found.setdefault(module, []).append(name)
    return ", ".join(f"{module}: {' '.join(found[module])}" for module in modules)
