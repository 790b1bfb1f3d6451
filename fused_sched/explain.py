"""``explain``: what a step of an optimizer does, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fused_sched.engines import choose
from fused_sched.runtime.fallback import described
from fused_sched.schedules.live import ledger_of


@dataclass(frozen=True)
class Explanation:
    """What ``optimizer.step()`` does; ``str()`` of it is made to be read.

    Attributes:
        engine: name of the engine, by device.
        reason: why that engine, by device.
        torch_step: params that torch's own step updates instead, by reason.
        launches_per_step: kernels that one step starts; None where torch decides (eager).
        syncs_per_step: times that a step waits for the device.
        obstacle: what stands in the way of a capture, None if nothing does.
        graph_nodes: nodes of one captured step, None without a GPU engine.
        bytes_per_step: bytes that the update moves to and from memory.
        fused: names of the schedules that are part of the launch.
        explicit: names of those that are launched or run by themselves.
        host_only: of the explicit ones, those that a graph cannot hold, and why.
        grad_scaler: what torch.amp.GradScaler makes of a step; None without a GPU engine.
    """

    engine: dict[str, str]
    reason: dict[str, str]
    torch_step: dict[str, int]
    launches_per_step: int | None
    syncs_per_step: int
    obstacle: str | None
    graph_nodes: str | None
    bytes_per_step: int | None
    fused: list[str]
    explicit: list[str]
    host_only: dict[str, str]
    grad_scaler: str | None

    @property
    def capturable(self) -> bool:
        """Whether a step can be captured now."""
        return self.obstacle is None

    def __str__(self) -> str:
        lines = [
            f"{device}: {self.engine[device]} ({self.reason[device]})" for device in self.engine
        ]
        if self.torch_step:
            lines.append(f"torch's own step: {described(self.torch_step)}")
        launches = "as torch" if self.launches_per_step is None else str(self.launches_per_step)
        lines.append(f"launches per step: {launches}; host syncs per step: {self.syncs_per_step}")
        if self.bytes_per_step is not None:
            lines.append(f"bytes moved per step: {self.bytes_per_step:,}")
        lines.append(f"schedules in the launch: {', '.join(self.fused) or 'none'}")
        lines.append(f"schedules by themselves: {', '.join(self.explicit) or 'none'}")
        lines += [f"  {name} on the host only: {why}" for name, why in self.host_only.items()]
        if self.grad_scaler:
            lines.append(f"GradScaler: {self.grad_scaler}")
        lines.append("capturable: yes" if self.capturable else f"capturable: no, {self.obstacle}")
        if self.graph_nodes:
            lines.append(f"a captured step has {self.graph_nodes}")
        return "\n".join(lines)


def explain(optimizer: Any) -> Explanation:
    """Say which engine steps an optimizer and why, and what a step costs.

    Raises:
        TypeError: not an optimizer of ``fused_sched.optim``.
    """
    ledger = ledger_of(optimizer)
    if ledger is None:
        raise TypeError(f"{type(optimizer).__name__} is not an optimizer of fused_sched.optim")
    devices = ledger.placement.devices()
    engines = {
        str(device): choose.engine_for(device, ledger.mirror.host.rule) for device in devices
    }
    tables = [device_state.table for device_state in ledger.mirror.host.device_states.values()]
    torch_step = ledger.placement.fallbacks()
    launched = bool(devices) and all(e.NAME != "eager" for e in engines.values())
    on_tables = launched and not torch_step
    on_gpu = on_tables and _any_cuda(devices)
    schedules = ledger.mirror.host.schedules
    explicit = [one for one in schedules.roots() if schedules.find(one) is None]
    staged = sum(len(table.staged) for table in tables)
    copies = staged + len(ledger.mirror.host.lr_tensors())
    return Explanation(
        engine={device: engine.NAME for device, engine in engines.items()},
        reason={str(device): choose.why(device, ledger.mirror.host.rule) for device in devices},
        torch_step=torch_step,
        launches_per_step=len(devices) + copies if on_tables else None,
        syncs_per_step=_syncs(optimizer, devices, on_tables),
        obstacle=_obstacle(ledger, devices, launched, torch_step),
        graph_nodes=_nodes(copies) if on_gpu else None,
        bytes_per_step=sum(table.bytes_per_step() for table in tables) if tables else None,
        fused=[type(one.scheduler).__name__ for one in schedules.fused],
        explicit=[type(one).__name__ for one in explicit],
        host_only={
            type(one).__name__: reason
            for one in explicit
            if schedules.program_of(one) is None
            and (reason := schedules.why_refused(one)) is not None
        },
        grad_scaler=_scaler(optimizer) if on_gpu else None,
    )


def _any_cuda(devices: list[torch.device]) -> bool:
    return any(device.type == "cuda" for device in devices)


def _nodes(copies: int) -> str:
    return "one kernel node" + (f" and {copies} copies of odd tensors" if copies else "")


def _syncs(optimizer: Any, devices: list[torch.device], on_tables: bool) -> int:
    """GradScaler waits unless the optimizer takes its tensors; so does torch's own fallback."""
    scaler_waits = getattr(optimizer, "found_inf", None) is not None and not on_tables
    return int(scaler_waits and _any_cuda(devices))


def _scaler(optimizer: Any) -> str:
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        return "unscales and skips in the launch"
    return (
        "reads found_inf on the host at each step, which breaks a capture; construct the "
        "optimizer with fused=True"
    )


def _obstacle(
    ledger: Any, devices: list[torch.device], launched: bool, torch_step: dict[str, int]
) -> str | None:
    if not _any_cuda(devices):
        return "no param is on a CUDA device"
    if torch_step:
        return f"torch's own step updates {described(torch_step)}"
    if not launched:
        return "the eager engine steps a device; see the reason given for it"
    if not ledger.placement.is_prepared():
        return "nothing is allocated yet; call prepare() or make one eager step"
    return None
