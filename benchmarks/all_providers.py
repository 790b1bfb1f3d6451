"""The table of providers: who is measured on a device, and who is left out, with the reason."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

import fused_sched
from benchmarks.peers import PEERS
from benchmarks.providers import Provider, make_ours, make_torch
from benchmarks.workload import Task

DEFAULT, FOREACH, FUSED = "torch default", "torch foreach", "torch fused"
COMPILED, IN_A_GRAPH = "torch compiled", "torch capturable"

MAX_COMPILED_TENSORS = 200
"""Of one compiled step: for 161 tensors Inductor takes 42 s on two CPU cores, for 1,000 minutes."""

TORCH = (
    Provider(DEFAULT, make_torch),
    Provider(FOREACH, partial(make_torch, foreach=True)),
    Provider(FUSED, partial(make_torch, fused=True)),
)

IN_GRAPHS = partial(make_torch, capturable=True, tensor_lr=True)

CAPTURABLE = tuple(
    Provider(name + ", graph" * replay, make, replay=replay)
    for name, make in (
        ("torch foreach capturable", partial(IN_GRAPHS, foreach=True)),
        ("torch fused capturable", partial(IN_GRAPHS, fused=True)),
        ("torch fused capturable, float lr", partial(IN_GRAPHS, fused=True, float_schedule=True)),
    )
    for replay in (False, True)
)
"""With *float lr*, the schedule is computed with Python floats, of which each fills a tensor."""


def baseline(task: Task) -> str:
    """What ratios refer to: torch fused, or torch foreach of an optimizer that has no such step."""
    return FUSED if task.torch_takes("fused") else FOREACH


def compiled(device: torch.device, task: Task) -> Provider:
    """`torch.compile`d step with a tensor lr, without which each lr would compile anew."""
    capturable = device.type == "cuda" and task.torch_takes("capturable")
    options: dict[str, Any] = {"capturable": True} if capturable else {}
    make = partial(make_torch, compiled=True, tensor_lr=True, **options)
    return Provider(COMPILED, make, max_tensors=MAX_COMPILED_TENSORS)


def ours(engine: str, device: torch.device) -> list[Provider]:
    """Explicit and fused; on CUDA replayed as well, but for stock torch's uncapturable step."""
    replays = (False, True) if device.type == "cuda" and engine != "eager" else (False,)
    return [
        Provider(
            f"{engine} {'fused' if fuse else 'explicit'}{', graph' * replay}",
            partial(make_ours, engine=engine, fuse=fuse),
            replay=replay,
        )
        for fuse in (False, True)
        for replay in replays
    ]


def engines(device: torch.device) -> dict[str, str | None]:
    """Why an engine of ours is not measured on this device; None where it is."""
    reasons = fused_sched.engines.available(device)
    if device.type != "cuda":
        reasons["triton"] = "on a CPU it is Triton's interpreter, for tests"
    return reasons


def left_out(device: torch.device, task: Task, quick: bool = False) -> dict[str, str]:
    """Who is not measured on this device, and why."""
    reasons = {name: why for name, why in engines(device).items() if why is not None}
    reasons |= {peer.name: why for peer in PEERS if (why := peer.why_not(device, task))}
    if not task.torch_takes("fused"):
        reasons[FUSED] = f"torch has no such step of {task.optimizer}"
    if not task.torch_takes("capturable"):
        why = f"{task.optimizer} has no such form: its lr would be frozen in a graph"
        reasons[IN_A_GRAPH] = why
    elif device.type != "cuda":
        reasons[IN_A_GRAPH] = "torch refuses capturable=True for CPU params"
    if quick:
        reasons[COMPILED] = (
            "only in whole runs, or if named: it compiles longer than all else takes"
        )
    return reasons


def all_providers(device: torch.device, task: Task) -> dict[str, Provider]:
    """Every provider that runs on this device, by name: torch's, ours, then peers."""
    skipped = left_out(device, task)
    theirs = [*TORCH, *(CAPTURABLE if IN_A_GRAPH not in skipped else ())]
    found = [one for one in theirs if FUSED not in skipped or not one.name.startswith(FUSED)]
    found.append(compiled(device, task))
    for engine in engines(device):
        if engine not in skipped:
            found += ours(engine, device)
    found += [peer.provider(task) for peer in PEERS if peer.name not in skipped]
    return {provider.name: provider for provider in found}


def chosen_providers(
    names: Sequence[str] | None, device: torch.device, task: Task, quick: bool = False
) -> list[Provider]:
    """Those named, or all; always with the two that ratios refer to.

    A quick run compiles no step of torch's unless it is named.
    """
    providers = all_providers(device, task)
    unknown = set(names or ()) - set(providers)
    if unknown:
        raise SystemExit(f"no such provider: {sorted(unknown)}; there are {list(providers)}")
    default = [name for name in providers if name not in left_out(device, task, quick)]
    wanted = {DEFAULT, baseline(task), *(default if names is None else names)}
    return [provider for name, provider in providers.items() if name in wanted]
