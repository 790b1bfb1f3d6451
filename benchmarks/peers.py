"""Optimizers of other libraries, where they can be imported: beside ours, never needed."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.providers import Pair, Provider, cosine
from benchmarks.workload import LR, Task, Workload


@dataclass(frozen=True)
class Peer:
    """A library's optimizers: `options` by the name of the class, for the task's optimizers.

    `classes` gives theirs for torch's name; a task that is not in it they do not serve.
    """

    name: str
    module: str
    classes: dict[str, tuple[str, dict[str, Any]]]
    devices: tuple[str, ...] = ("cuda",)

    def why_not(self, device: torch.device, task: Task) -> str | None:
        """Why it is left out, if so."""
        if device.type not in self.devices:
            return f"its optimizers need {' or '.join(self.devices)}"
        if task.optimizer not in self.classes:
            return f"it has no {task.optimizer}"
        if importlib.util.find_spec(self.module.partition(".")[0]) is None:
            return "not installed"
        return None

    def provider(self, task: Task) -> Provider:
        """Its row of the table."""
        theirs, options = self.classes[task.optimizer]
        return Provider(self.name, partial(make_peer, module=self.module, name=theirs, **options))


def make_peer(workload: Workload, module: str, name: str, **options: Any) -> Pair:
    """Its optimizer under torch's scheduler, which writes a float into each group's lr."""
    optimizer: Callable[..., Any] = getattr(importlib.import_module(module), name)
    opt = optimizer(workload.param_groups(), lr=LR, **options)
    sched = cosine(torch.optim.lr_scheduler, opt)
    return Pair(opt.step, sched.step, alive=opt)


BETAS = {"betas": (0.9, 0.999), "eps": 1e-8}  # torch's, where theirs differ
MOMENTUM = {"momentum": 0.9}

PEERS = (
    # Kahan sums, optimi's default for bfloat16, would be one state more.
    Peer(
        "optimi",
        "optimi",
        {
            "SGD": ("SGD", MOMENTUM | {"kahan_sum": False}),
            "Adam": ("Adam", BETAS | {"kahan_sum": False}),
            "AdamW": ("AdamW", BETAS | {"kahan_sum": False}),
        },
        devices=("cpu", "cuda"),
    ),
    Peer(
        "apex",
        "apex.optimizers",
        {
            "SGD": ("FusedSGD", MOMENTUM),
            "Adam": ("FusedAdam", {"adam_w_mode": False}),
            "AdamW": ("FusedAdam", {"adam_w_mode": True}),
        },
    ),
    Peer(
        "bitsandbytes",
        "bitsandbytes.optim",
        {"SGD": ("SGD", MOMENTUM), "Adam": ("Adam", {}), "AdamW": ("AdamW", {})},
    ),
    # Its states have 8 bits: fewer bytes than the GB/s of the tables count.
    Peer(
        "torchao 8-bit",
        "torchao.optim",
        {"Adam": ("Adam8bit", {}), "AdamW": ("AdamW8bit", {})},
    ),
)
