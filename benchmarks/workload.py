"""What every provider of a comparison steps: the same parameters and gradients.

Their values do not matter to the time; every optimizer has its own state.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import Model
from benchmarks.shapes import Shape
from fused_sched.swap import OPTIMIZERS

LR = 1e-4
T_MAX = 10**7  # beyond every measurement: the schedule neither ends nor turns

DTYPES = {
    "float32": (torch.float32,),
    "bfloat16": (torch.bfloat16,),
    "float16": (torch.float16,),
    "mixed": (torch.float32, torch.bfloat16),
}
"""By name, the dtypes that a model's tensors take in turn: `mixed` is every other one bfloat16."""

RULES = {theirs.__name__: ours for theirs, ours in OPTIMIZERS.items()}
"""Every optimizer that torch has and we have, ours by its name."""


@dataclass(frozen=True)
class Task:
    """What is trained: an optimizer with its options, and the dtypes of DTYPES.

    A step reads param, gradient and state and writes all but the gradient. Here as in stock torch
    a state has its param's dtype.
    """

    optimizer: str
    dtype: str = "float32"

    @property
    def options(self) -> dict[str, Any]:
        """Beside lr and weight decay."""
        return {"momentum": 0.9} if self.torch_takes("momentum") else {}

    @property
    def state_tensors(self) -> int:
        """Tensors of state for each param."""
        states = RULES[self.optimizer].states
        return sum(when is True or when in self.options for when in states.values())

    def torch_takes(self, option: str) -> bool:
        """Whether torch's constructor knows an option, such as `fused`."""
        return option in inspect.signature(getattr(torch.optim, self.optimizer)).parameters

    def dtypes(self, tensors: int) -> list[torch.dtype]:
        """The dtype of each of so many tensors."""
        cycle = DTYPES[self.dtype]
        return [cycle[i % len(cycle)] for i in range(tensors)]

    def param_bytes(self, model: Model) -> int:
        """Of all parameters; gradients, and each of the states, are as many again."""
        dtypes = self.dtypes(len(model.shapes))
        return sum(
            prod(shape) * dtype.itemsize for shape, dtype in zip(model.shapes, dtypes, strict=True)
        )

    def bytes_moved(self, model: Model) -> int:
        """What a step has to move: param and states read and written, the gradient read."""
        return (3 + 2 * self.state_tensors) * self.param_bytes(model)

    def make(self, module: Any, groups: list[dict[str, Any]], **options: Any) -> Any:
        """The optimizer of this name in a module."""
        return getattr(module, self.optimizer)(groups, **self.options, **options)


@dataclass(frozen=True)
class Workload:
    """Parameters with gradients, one list per group of `model`."""

    model: Model
    device: torch.device
    task: Task
    params: Sequence[Sequence[Tensor]]

    @classmethod
    def make(cls, model: Model, device: torch.device, task: Task) -> "Workload":
        """Random parameters and gradients of the model's shapes."""
        torch.manual_seed(0)
        dtypes = iter(task.dtypes(len(model.shapes)))
        params = [
            [make_param(shape, device, next(dtypes)) for shape in group.shapes]
            for group in model.groups
        ]
        return cls(model, device, task, params)

    def param_groups(self, tensor_lr: bool = False) -> list[dict[str, Any]]:
        """The optimizer's argument; with `tensor_lr`, each group has an lr tensor of its own."""
        groups = []
        for group, params in zip(self.model.groups, self.params, strict=True):
            lr = LR * group.lr_scale
            groups.append(
                {
                    "params": params,
                    "lr": torch.tensor(lr, device=self.device) if tensor_lr else lr,
                    "weight_decay": group.weight_decay,
                }
            )
        return groups


def make_param(shape: Shape, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A leaf with a gradient."""
    param = torch.randn(shape, device=device).mul_(0.02).to(dtype).requires_grad_()
    param.grad = torch.randn(shape, device=device).mul_(1e-3).to(dtype)
    return param
