"""Ordinary uses of an optimizer, each as one turn of a training loop without forward and backward.

A use is written once and built for every provider: torch's optimizers or ours, with the schedule
stepped by the loop or fused into the launch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import fused_sched
from benchmarks.measure import Runner
from benchmarks.models import MODELS, Group, Model
from benchmarks.providers import Schedule, cosine
from benchmarks.shapes import linear
from benchmarks.workload import LR

Groups = list[dict[str, Any]]
Begin = Callable[["Provider", Groups], Runner]
"""Builds a loop on param groups; the runner's step is one turn of it."""


@dataclass(frozen=True)
class Provider:
    """Whose classes a loop uses; with `engine` they are ours, which step on it.

    With `fuse` the schedule rides in the launch; the loop goes on calling `sched.step()`.
    """

    name: str
    optim: ModuleType = torch.optim
    lr_scheduler: ModuleType = torch.optim.lr_scheduler
    options: dict[str, Any] = field(default_factory=dict)
    engine: str | None = None
    fuse: bool = False

    def optimizer(self, groups: Any) -> Any:
        """An AdamW."""
        return self.optim.AdamW(groups, lr=LR, **self.options)

    def pair(self, groups: Groups, schedule: Schedule = cosine) -> tuple[Any, Any]:
        """An AdamW and its scheduler, fused if the provider does so."""
        opt = self.optimizer(groups)
        sched = schedule(self.lr_scheduler, opt)
        if self.fuse:
            fused_sched.fuse(opt, sched)
        return opt, sched


def ours(engine: str, fuse: bool) -> Provider:
    """Our classes on one engine."""
    name = f"{engine} {'fused' if fuse else 'explicit'}"
    return Provider(name, fused_sched.optim, fused_sched.lr_scheduler, {}, engine, fuse)


DEFAULT, FUSED = Provider("torch default"), Provider("torch fused", options={"fused": True})


@dataclass(frozen=True)
class Use:
    """One kind of loop.

    `about` says what a turn does. `explicit` and `fused` say in which of our modes it is measured:
    without a schedule that can be fused there is one. With `first`, `begin` runs anew before each
    turn, outside of the clock.
    """

    name: str
    about: str
    begin: Begin
    model: Model = MODELS["mlp"]
    explicit: bool = True
    fused: bool = True
    first: bool = False

    def serves(self, provider: Provider) -> bool:
        """Whether the provider is measured."""
        if provider.engine is None:
            return True
        return self.fused if provider.fuse else self.explicit


# -- what a turn does ----------------------------------------------------------------------------


def with_call(opt: Any, sched: Any) -> Runner:
    """`opt.step(); sched.step()`."""

    def turn() -> None:
        opt.step()
        sched.step()

    return Runner(turn)


def plain(provider: Provider, groups: Groups) -> Runner:
    """The loop of the README."""
    return with_call(*provider.pair(groups))


def without_call(provider: Provider, groups: Groups) -> Runner:
    """Fused with an interval the schedule moves by itself; others have to call it."""
    if not provider.fuse:
        return plain(provider, groups)
    opt = provider.optimizer(groups)
    sched = cosine(provider.lr_scheduler, opt)
    fused_sched.fuse(opt, sched, interval=1)

    def turn() -> None:
        opt.step()

    return Runner(turn, alive=sched)


def plateau(provider: Provider, groups: Groups) -> Runner:
    """A float metric each step."""
    opt = provider.optimizer(groups)
    sched = provider.lr_scheduler.ReduceLROnPlateau(opt, patience=10**9)

    def turn() -> None:
        opt.step()
        sched.step(1.0)

    return Runner(turn)


def inverse(epoch: int) -> float:
    """A callable of the user's own."""
    return 1 / (1 + 1e-3 * epoch)


def callable_lr(provider: Provider, groups: Groups) -> Runner:
    """LambdaLR."""
    return with_call(*provider.pair(groups, lambda module, opt: module.LambdaLR(opt, inverse)))


def held_state(provider: Provider, groups: Groups) -> Runner:
    """Somebody, as a wrapper does, keeps the dict that `opt.state` gave."""
    opt, sched = provider.pair(groups)
    return replace(with_call(opt, sched), alive=opt.state)


def hooked(provider: Provider, groups: Groups) -> Runner:
    """A hook before and one after each step."""
    opt, sched = provider.pair(groups)
    opt.register_step_pre_hook(lambda *_: None)
    opt.register_step_post_hook(lambda *_: None)
    return with_call(opt, sched)


def moving(begin: Begin) -> Begin:
    """A loop whose gradients lie elsewhere at each step, as after `zero_grad()` and `backward()`.

    They were made before: a turn assigns them, which takes every provider as long.
    """

    def begin_moving(provider: Provider, groups: Groups) -> Runner:
        params = all_params(groups)
        sets = [[torch.randn_like(param).mul_(1e-3) for param in params] for _ in range(3)]
        rest = begin(provider, groups).step
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            for param, grad in zip(params, sets[turns % 3]):
                param.grad = grad
            rest()

        return Runner(turn)

    return begin_moving


def clipped(provider: Provider, groups: Groups) -> Runner:
    """The gradients' norm is clipped before."""
    params = all_params(groups)
    rest = plain(provider, groups).step

    def turn() -> None:
        clip_grad_norm_(params, 1.0)
        rest()

    return Runner(turn)


def by_hand(provider: Provider, groups: Groups) -> Runner:
    """No scheduler: the loop assigns lr."""
    opt = provider.optimizer(groups)
    steps = 0

    def turn() -> None:
        nonlocal steps
        steps += 1
        for group in opt.param_groups:
            group["lr"] = LR * inverse(steps)
        opt.step()

    return Runner(turn)


def closure(provider: Provider, groups: Groups) -> Runner:
    """`opt.step(closure)`; this one returns a loss that is there."""
    opt, sched = provider.pair(groups)
    loss = torch.ones(())

    def turn() -> None:
        opt.step(lambda: loss)
        sched.step()

    return Runner(turn)


def scaled(provider: Provider, groups: Groups) -> Runner:
    """`scaler.step(opt); scaler.update()`, with a scale of 1 that stays."""
    opt, sched = provider.pair(groups)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=10**9)
    scaler.scale(torch.ones(()))

    def turn() -> None:
        scaler.step(opt)
        scaler.update()
        sched.step()

    return Runner(turn)


def read_group(provider: Provider, groups: Groups) -> Runner:
    """`group["lr"]` for the log, after each turn."""
    opt, sched = provider.pair(groups)

    def turn() -> None:
        opt.step()
        sched.step()
        opt.param_groups[0]["lr"]

    return Runner(turn)


def read_last(provider: Provider, groups: Groups) -> Runner:
    """`sched.get_last_lr()` for the log, after each turn."""
    opt, sched = provider.pair(groups)

    def turn() -> None:
        opt.step()
        sched.step()
        sched.get_last_lr()

    return Runner(turn)


def one_each(provider: Provider, groups: Groups) -> Runner:
    """An optimizer for every param, as those have who step inside of backward."""
    optimizers = [provider.optimizer([param]) for param in all_params(groups)]

    def turn() -> None:
        for opt in optimizers:
            opt.step()

    return Runner(turn)


def all_params(groups: Groups) -> list[Tensor]:
    """Of every group, in their order."""
    return [param for group in groups for param in group["params"]]


# -- the uses ------------------------------------------------------------------------------------

GROUPS_28 = Model("28 groups", (Group(linear(50, 50)),) * 28)
TENSORS_161 = Model("161 tensors", (Group(((500,),) * 161),))

ALL_USES = (
    Use("loop", "opt.step(); sched.step(), CosineAnnealingLR; fused with the call left in", plain),
    Use(
        "call dropped",
        "the same; fused by fuse(opt, sched, interval=1), without the call",
        without_call,
        explicit=False,
    ),
    Use("plateau", "ReduceLROnPlateau.step(metric) each step, a float", plateau, fused=False),
    Use("callable", "LambdaLR with a function", callable_lr),
    Use("state held", "somebody keeps the dict that opt.state gave", held_state),
    Use("hooks", "a hook before and one after each step", hooked),
    Use("new gradients", "each step's gradients lie at other addresses", moving(plain)),
    Use("hooks, new gradients", "both", moving(hooked)),
    Use("clip", "torch.nn.utils.clip_grad_norm_(params, 1.0) before the step", clipped),
    Use("lr by hand", 'no scheduler; group["lr"] is assigned each step', by_hand, fused=False),
    Use("closure", "opt.step(closure)", closure),
    Use("scaler", "torch.amp.GradScaler, enabled: scaler.step(opt); scaler.update()", scaled),
    Use("28 groups", "two tensors in each group", plain, GROUPS_28),
    Use("lr read", 'group["lr"] is read each step', read_group),
    Use("last lr read", "sched.get_last_lr() is read each step", read_last),
    Use("161 optimizers", "of one param each, no scheduler", one_each, TENSORS_161, fused=False),
    Use(
        "161 first steps",
        "the first step of 161 new optimizers of one param each",
        one_each,
        TENSORS_161,
        fused=False,
        first=True,
    ),
)
USES = {use.name: use for use in ALL_USES}


def providers(engines: Sequence[str]) -> list[Provider]:
    """torch's, and ours on these engines."""
    return [DEFAULT, FUSED, *(ours(engine, fuse) for engine in engines for fuse in (False, True))]
