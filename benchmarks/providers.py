"""Everybody who is measured: torch's ways to step, each engine of ours, and peers.

A step is what a user's loop calls after `backward()`: `opt.step(); sched.step()`, fused or not.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch

import fused_sched
from benchmarks.measure import Runner
from benchmarks.workload import T_MAX, Workload

WARM_UP_STEPS = 3

Step = Callable[[], object]

Schedule = Callable[[ModuleType, Any], Any]
"""Builds a scheduler of a module (torch's or ours) on an optimizer."""


def cosine(module: ModuleType, opt: Any) -> Any:
    """The schedule of every comparison that is not about schedules."""
    return module.CosineAnnealingLR(opt, T_MAX)


@dataclass(frozen=True)
class Pair:
    """An optimizer and its scheduler, which have not stepped yet.

    A graph may hold `update`. `host` has to run beside its replays, since it counts in Python.
    """

    update: Step
    host: Step | None = None
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    alive: object = None

    def runner(self, update: Step | None = None) -> Runner:
        """What is timed; `update` stands in for the pair's own, for example its replay."""
        return Runner(in_turn(update or self.update, self.host), self.context, self)


def in_turn(first: Step, second: Step | None) -> Step:
    """A function that calls both; just the first where there is no second."""
    if second is None:
        return first

    def both() -> None:
        first()
        second()

    return both


@dataclass(frozen=True)
class Provider:
    """A name in the tables, and how to make its pair.

    With `replay`, its update is captured and replayed. One that takes too long to get ready for
    more than `max_tensors` tensors is left out there.
    """

    name: str
    make: Callable[[Workload], Pair]
    replay: bool = False
    max_tensors: int | None = None

    def build(self, workload: Workload) -> Runner:
        """Ready to step: warmed up and, if it is replayed, captured."""
        pair = self.make(workload)
        runner = pair.runner()
        with pair.context():
            warm_up(runner.step, workload.device)
            return pair.runner(captured(pair.update)) if self.replay else runner

    def serves(self, tensors: int) -> bool:
        """Whether it is measured on a model of so many tensors."""
        return self.max_tensors is None or tensors <= self.max_tensors


def make_torch(
    workload: Workload,
    schedule: Schedule | None = cosine,
    compiled: bool = False,
    tensor_lr: bool = False,
    float_schedule: bool = False,
    **options: Any,
) -> Pair:
    """Stock torch's optimizer and scheduler.

    With `tensor_lr`, which capturable and compiled steps want, the scheduler fills a tensor from
    the host: under replay it runs outside the graph, since its host counters stand still inside.
    Torch's scheduler then computes with that tensor, by kernels of its own; with `float_schedule`
    it computes with Python floats, on an optimizer of nothing, and its result fills the tensor.
    """
    opt = workload.task.make(torch.optim, workload.param_groups(tensor_lr), **options)
    if schedule is None:
        host = None
    elif float_schedule:
        host = filling(opt, workload.param_groups(), schedule)
    else:
        host = schedule(torch.optim.lr_scheduler, opt).step
    return Pair(compiled_step(opt) if compiled else opt.step, host, alive=opt)


def filling(opt: Any, groups: Sequence[dict[str, Any]], schedule: Schedule) -> Step:
    """A step of torch's scheduler on Python floats, which then fill the lr tensors of `opt`.

    Args:
        opt: has an lr tensor in each group.
        groups: where the schedule starts from, by the same groups.
    """
    floats = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": one["lr"]} for one in groups])
    sched = schedule(torch.optim.lr_scheduler, floats)
    floats.step()  # else the scheduler would warn that no step came before its own

    def step() -> None:
        sched.step()
        for group, new in zip(opt.param_groups, floats.param_groups, strict=True):
            group["lr"].fill_(new["lr"])

    return step


def compiled_step(opt: Any) -> Step:
    """`torch.compile` of the step, as torch's own recipe for compiled optimizers has it."""
    torch.compiler.reset()  # else each model's code counts against one limit of recompilations
    return torch.compile(opt.step)


def make_ours(
    workload: Workload, engine: str, fuse: bool, schedule: Schedule | None = cosine
) -> Pair:
    """fused_sched's pair on one engine, which `context` forces."""
    context = partial(fused_sched.use_engine, engine)
    with context():
        opt = workload.task.make(fused_sched.optim, workload.param_groups())
        used = set(fused_sched.explain(opt).engine.values())
        if used != {engine}:
            raise RuntimeError(f"expected the {engine} engine to step, but {used} will")
        if schedule is None:
            return Pair(opt.step, context=context, alive=opt)
        sched = schedule(fused_sched.lr_scheduler, opt)
        if fuse:
            fused_sched.fuse(opt, sched)
    return Pair(in_turn(opt.step, sched.step), context=context, alive=(opt, sched))


def warm_up(step: Step, device: torch.device) -> None:
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


def captured(step: Step) -> Step:
    """The replay of a CUDA graph that contains one step."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
