"""Everybody who is measured: torch's ways to step, and each engine of ours.

All providers of a workload share its parameters and gradients, whose values do not matter to the
time; every optimizer has its own state. A step is what a user's loop calls after `backward()`:
`opt.step(); sched.step()`, and in fused mode `opt.step()` alone, which includes the schedule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fused_sched
from benchmarks.measure import Runner
from benchmarks.models import Model

LR = 1e-4
T_MAX = 10**7  # beyond every measurement: the schedule neither ends nor turns
WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Task:
    """What is trained: an optimizer with its options, in a dtype.

    A step reads param, gradient and state and writes all but the gradient.
    """

    optimizer: str
    dtype: torch.dtype = torch.float32

    @property
    def options(self) -> dict[str, Any]:
        """Beside lr and weight decay."""
        return {"momentum": 0.9} if self.optimizer == "SGD" else {}

    @property
    def state_tensors(self) -> int:
        """Tensors of state for each param."""
        return 1 if self.optimizer == "SGD" else 2

    @property
    def bytes_per_param(self) -> int:
        """What a step has to move."""
        return (3 + 2 * self.state_tensors) * self.dtype.itemsize

    @property
    def dtype_name(self) -> str:
        """For example `float32`."""
        return str(self.dtype).removeprefix("torch.")

    def make(self, module: Any, groups: list[dict[str, Any]], **options: Any) -> Any:
        """The optimizer of this name in a module."""
        return getattr(module, self.optimizer)(groups, **self.options, **options)


@dataclass(frozen=True)
class Workload:
    """Parameters with gradients, one list per group of `model`."""

    model: Model
    device: torch.device
    task: Task
    params: list[list[Tensor]]

    @classmethod
    def make(cls, model: Model, device: torch.device, task: Task) -> "Workload":
        """Random parameters and gradients of the model's shapes."""
        torch.manual_seed(0)
        params = [
            [make_param(shape, device, task.dtype) for shape in group.shapes]
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


def make_param(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A leaf with a gradient."""
    param = torch.randn(shape, device=device).mul_(0.02).to(dtype).requires_grad_()
    param.grad = torch.randn(shape, device=device).mul_(1e-3).to(dtype)
    return param


def bytes_needed(model: Model, task: Task, providers: int) -> int:
    """Memory of params, grads, each provider's state, and one foreach step's two temporaries."""
    return task.dtype.itemsize * model.num_params * (4 + task.state_tensors * providers)


@dataclass(frozen=True)
class Provider:
    """A name in the tables, and how to make it ready to step (warmed up, captured)."""

    name: str
    build: Callable[[Workload], Runner]


def build_torch(workload: Workload, replay: bool = False, **options: Any) -> Runner:
    """Stock torch's optimizer and CosineAnnealingLR.

    Capturable AdamW takes its lr as a tensor, which the scheduler fills from the host: under replay
    the scheduler runs outside the graph, since its host counters stand still inside.
    """
    groups = workload.param_groups(tensor_lr=options.get("capturable", False))
    opt = workload.task.make(torch.optim, groups, **options)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_MAX)
    update: Callable[[], object] = opt.step

    def step() -> None:
        update()
        sched.step()

    warm_up(step, workload.device)
    if replay:
        update = captured(opt.step)
    return Runner(step, alive=opt)


def build_ours(workload: Workload, engine: str, fuse: bool, replay: bool = False) -> Runner:
    """fused_sched's pair on one engine; under replay all of it captured."""
    context = partial(fused_sched.use_engine, engine)
    with context():
        opt = workload.task.make(fused_sched.optim, workload.param_groups())
        sched = fused_sched.lr_scheduler.CosineAnnealingLR(opt, T_MAX)
        if fuse:
            fused_sched.fuse(opt, sched)

        def step() -> None:
            opt.step()
            if not fuse:
                sched.step()

        warm_up(step, workload.device)
        used = set(fused_sched.explain(opt).engine.values())
        if used != {engine}:
            raise RuntimeError(f"expected the {engine} engine to step, but {used} did")
        return Runner(captured(step) if replay else step, context, alive=(opt, sched))


def warm_up(step: Callable[[], object], device: torch.device) -> None:
    """First steps allocate and compile; on CUDA on a side stream, as a capture wants it."""
    if device.type != "cuda":
        for _ in range(WARM_UP_STEPS):
            step()
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream(device).wait_stream(side)


def captured(step: Callable[[], object]) -> Callable[[], None]:
    """The replay of a CUDA graph that contains one step."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


TORCH = (
    Provider("torch default", build_torch),
    Provider("torch foreach", partial(build_torch, foreach=True)),
    Provider("torch fused", partial(build_torch, fused=True)),
)

CAPTURABLE = (
    ("torch foreach capturable", partial(build_torch, foreach=True, capturable=True)),
    ("torch fused capturable", partial(build_torch, fused=True, capturable=True)),
)

TORCH_CUDA = tuple(
    Provider(name + ", graph" * replay, partial(build, replay=replay))
    for name, build in CAPTURABLE
    for replay in (False, True)
)


def ours(engine: str, device: torch.device) -> list[Provider]:
    """Explicit and fused; on CUDA replayed as well, but for stock torch's uncapturable step."""
    replays = (False, True) if device.type == "cuda" and engine != "eager" else (False,)
    return [
        Provider(
            f"{engine} {'fused' if fuse else 'explicit'}{', graph' * replay}",
            partial(build_ours, engine=engine, fuse=fuse, replay=replay),
        )
        for fuse in (False, True)
        for replay in replays
    ]


def left_out(device: torch.device) -> dict[str, str]:
    """The engines that are not measured on this device, and why."""
    reasons = {
        engine: reason
        for engine, reason in fused_sched.engines.available(device).items()
        if reason is not None
    }
    if device.type != "cuda":
        reasons["triton"] = "on a CPU it is Triton's interpreter, for tests"
    return reasons


def all_providers(device: torch.device, task: Task) -> dict[str, Provider]:
    """Every provider that runs on this device, by name; torch's come first.

    Stock SGD has no capturable form: its lr would be frozen in the graph.
    """
    skipped = left_out(device)
    capturable = device.type == "cuda" and task.optimizer != "SGD"
    found = [*TORCH, *(TORCH_CUDA if capturable else ())]
    for engine in fused_sched.engines.available(device):
        if engine not in skipped:
            found += ours(engine, device)
    return {provider.name: provider for provider in found}
