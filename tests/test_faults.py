"""Faults, each injected on every engine: survived, or refused with nothing lost.

    python -m tests.test_faults > docs/faults.md

writes the table of them.
"""

from __future__ import annotations

import copy
import io
import math
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import engine_for
from fused_sched.runtime.state import StateKeeper
from tests.training import check

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]


class Run:
    """A training of three params with a schedule, ours or stock torch's."""

    def __init__(self, ours: bool = True, fuse: bool = True) -> None:
        torch.manual_seed(0)
        self.params = [Parameter(torch.randn(n)) for n in (3, 5, 1)]
        optim = fused_sched.optim if ours else torch.optim
        schedulers = fused_sched.lr_scheduler if ours else torch.optim.lr_scheduler
        self.opt: Any = optim.AdamW(self.params, lr=0.1)
        self.scheduler: Any = schedulers.CosineAnnealingLR(self.opt, T_max=30)
        self.calls = not (ours and fuse)
        if ours and fuse:
            fused_sched.fuse(self.opt, self.scheduler, interval=1)
        self.made = 0

    def backward(self) -> None:
        torch.manual_seed(100 + self.made)
        for param in self.params:
            param.grad = torch.randn_like(param.detach())

    def step(self, times: int = 1) -> Run:
        for _ in range(times):
            self.backward()
            self.opt.step()
            if self.calls:
                self.scheduler.step()
            self.made += 1
        return self

    def facts(self) -> dict[Any, Tensor]:
        """All that a step moves, by name."""
        state = {
            (number, name): torch.as_tensor(value).clone()
            for number, param in enumerate(self.params)
            for name, value in self.opt.state.get(param, {}).items()
        }
        params = {number: param.detach().clone() for number, param in enumerate(self.params)}
        place = [self.opt.param_groups[0]["lr"], self.scheduler.last_epoch]
        return {**params, **state, "place": torch.tensor(place, dtype=torch.float64)}

    def unchanged_since(self, before: dict[Any, Tensor]) -> bool:
        now = self.facts()
        return all(torch.equal(now[name], value) for name, value in before.items())


def goes_on_like_stock(run: Run, steps: int = 3) -> None:
    """From its third step on, as if nothing had been."""
    stock = Run(ours=False).step(run.made)
    run.step(steps)
    stock.step(steps)
    check(run.params, stock.params)
    assert run.scheduler.last_epoch == stock.scheduler.last_epoch
    assert run.opt.param_groups[0]["lr"] == pytest.approx(
        stock.opt.param_groups[0]["lr"], rel=1e-12
    )


def refused(call: Callable[[], Any], *errors: type[BaseException]) -> BaseException:
    with pytest.raises(errors) as caught:
        call()
    return caught.value


# -- the faults: each returns what happened and what was lost ------------------------------------


def non_finite_gradients_with_a_scaler() -> tuple[str, str]:
    run = Run()
    for made in (0, 3):
        run.step(made)
        before = run.facts()
        run.backward()
        run.params[0].grad[0] = math.nan
        run.opt.found_inf = torch.ones(1)
        run.opt.step()
        del run.opt.found_inf
        assert run.unchanged_since(before)
    goes_on_like_stock(run)
    return "the step was skipped, and the schedule did not advance", "nothing"


def non_finite_gradients_without_a_scaler() -> tuple[str, str]:
    runs = Run().step(2), Run(ours=False).step(2)
    for run in runs:
        run.backward()
        run.params[0].grad[0] = math.inf
        run.params[1].grad[1] = math.nan
        run.opt.step()
    check(runs[0].params, runs[1].params)
    return "the elements became NaN, as with stock torch", "those elements"


class Failure(Exception):
    """What the tests raise."""


def fail(*_: Any, **__: Any) -> None:
    raise Failure


def exception_in_the_closure() -> tuple[str, str]:
    run = Run().step(3)
    before = run.facts()
    refused(lambda: run.opt.step(fail), Failure)
    assert run.unchanged_since(before)
    goes_on_like_stock(run)
    return "raised", "nothing"


def exception_in_a_hook_before_the_step() -> tuple[str, str]:
    run = Run().step(3)
    before = run.facts()
    handle = run.opt.register_step_pre_hook(fail)
    refused(run.opt.step, Failure)
    handle.remove()
    assert run.unchanged_since(before)
    goes_on_like_stock(run)
    return "raised", "nothing"


def exception_in_a_hook_after_the_step() -> tuple[str, str]:
    run = Run().step(3)
    handle = run.opt.register_step_post_hook(fail)
    run.backward()
    refused(run.opt.step, Failure)
    handle.remove()
    run.made += 1
    goes_on_like_stock(run)
    return "raised after the step, which counts once", "nothing"


@contextmanager
def failing(owner: Any, name: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        yield


def exception_in_the_launch() -> tuple[str, str]:
    run = Run().step(3)
    run.opt.param_groups[0]["eps"] = run.opt.param_groups[0]["eps"]  # the next step is a full one
    before = run.facts()
    run.backward()
    with failing(engine_for(CPU), "update"):
        refused(run.opt.step, Failure)
    assert run.unchanged_since(before)
    goes_on_like_stock(run)
    return "raised", "nothing"


def kernel_that_does_not_compile() -> tuple[str, str]:
    run = Run(fuse=False)
    run.backward()
    before = [param.detach().clone() for param in run.params]
    engine = engine_for(CPU)
    if not hasattr(engine, "load"):
        return "no kernel to compile", "nothing"
    with failing(engine, "load"):
        refused(run.opt.step, Failure)
    assert all(map(torch.equal, run.params, before)) and not run.opt.state
    goes_on_like_stock(run)
    return "raised before anything moved", "nothing"


def out_of_memory_while_building_tables() -> tuple[str, str]:
    run = Run(fuse=False)
    run.backward()
    before = [param.detach().clone() for param in run.params]
    if engine_for(CPU).NAME == "eager":
        return "torch allocates", "nothing"
    with failing(StateKeeper, "_tensor"):
        refused(run.opt.step, Failure)
    assert all(map(torch.equal, run.params, before)) and not run.opt.state
    goes_on_like_stock(run)
    return "raised before anything moved", "nothing"


def truncated(state: dict[str, Any]) -> dict[str, Any]:
    del state["state"][1]["exp_avg"]
    return state


def of_another_model(state: dict[str, Any]) -> dict[str, Any]:
    state["state"][0]["exp_avg"] = torch.zeros(4)
    return state


def of_more_groups(state: dict[str, Any]) -> dict[str, Any]:
    state["param_groups"] *= 2
    return state


def without_lr(state: dict[str, Any]) -> dict[str, Any]:
    del state["param_groups"][0]["lr"]
    return state


def checkpoint_of_something_else() -> tuple[str, str]:
    for damage in (truncated, of_another_model, of_more_groups, without_lr):
        run = Run().step(3)
        before = run.facts()
        state = damage(copy.deepcopy(run.opt.state_dict()))
        refused(lambda run=run, state=state: run.opt.load_state_dict(state), ValueError, KeyError)
        assert run.unchanged_since(before)
        goes_on_like_stock(run)
    return "refused, saying what does not fit", "nothing"


def moved_param() -> tuple[str, str]:
    run = Run().step(3)
    for param in run.params:
        param.data = param.data.clone()
    goes_on_like_stock(run)
    return "the step uses its new memory", "nothing"


def resized_param() -> tuple[str, str]:
    run = Run().step(3)
    others = [param.detach().clone() for param in run.params[1:]]
    run.params[0].data = torch.zeros(9)
    run.backward()
    refused(run.opt.step, RuntimeError, ValueError)
    if engine_for(CPU).NAME != "eager":  # stock torch may have moved those before it
        assert all(map(torch.equal, run.params[1:], others))
    return "refused: the moments have the old shape", "nothing of the other params"


def retyped_param() -> tuple[str, str]:
    run, stock = Run().step(3), Run(ours=False).step(3)
    run.backward()
    stock.backward()
    param = run.params[0]
    param.grad, param.data = None, param.data.double()
    param.grad = stock.params[0].grad.double()
    if engine_for(CPU).NAME == "eager":
        refused(run.opt.step, RuntimeError)
        return "refused, as by stock torch", "the step"
    run.opt.step()
    stock.opt.step()
    assert param.dtype == torch.float64
    check([one.float() for one in run.params], stock.params)
    return "continues with the moments it has (eager: refused, as by stock torch)", "nothing"


def swapped_param() -> tuple[str, str]:
    runs = Run().step(3), Run(ours=False).step(3)
    for run in runs:
        torch.manual_seed(5)
        run.params[1] = Parameter(torch.randn(5))
        run.opt.param_groups[0]["params"][1] = run.params[1]
        run.step(2)
    check(runs[0].params, runs[1].params)
    return "the new param starts without moments, as with stock torch", "the old one's moments"


def killed_between_the_two_steps() -> tuple[str, str]:
    run = Run(fuse=False).step(3)
    file = io.BytesIO()
    params = [param.detach().clone() for param in run.params]
    torch.save((params, run.opt.state_dict(), run.scheduler.state_dict()), file)
    run.backward()
    run.opt.step()  # and here it dies
    file.seek(0)
    params, opt, scheduler = torch.load(file, weights_only=False)
    resumed = Run(fuse=False)
    for param, saved in zip(resumed.params, params, strict=True):
        param.data.copy_(saved)
    resumed.opt.load_state_dict(opt)
    resumed.scheduler.load_state_dict(scheduler)
    resumed.made = 3
    resumed.step(3)
    whole = Run(fuse=False).step(6)
    assert resumed.unchanged_since(whole.facts())
    return "resumed from the last checkpoint bit by bit", "the step after it"


def two_optimizers_on_one_model() -> tuple[str, str]:
    results = []
    for optim in (fused_sched.optim, torch.optim):
        torch.manual_seed(0)
        param = Parameter(torch.randn(4))
        opts = [optim.SGD([param], lr=0.1, momentum=0.9), optim.AdamW([param], lr=0.01)]
        for _ in range(4):
            param.grad = torch.ones(4)
            for opt in opts:
                opt.step()
        results.append([param])
    check(*results)
    return "each has its own state, as with stock torch", "nothing"


def one_optimizer_in_two_threads() -> tuple[str, str]:
    param = Parameter(torch.zeros(8))
    param.grad = torch.ones(8)
    opt = fused_sched.optim.SGD([param], lr=1.0)
    opt.step()
    made, wrong = [0, 0], []

    def work(number: int) -> None:
        for _ in range(50):
            try:
                opt.step()
                made[number] += 1
            except RuntimeError as error:
                wrong.append(str(error))

    # Full steps are Python: torch's own optimizers are no safer. Cached ones hold the GIL or raise.
    if engine_for(CPU).NAME != "native":
        return "not made for it, as stock torch", "use one thread"
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("one thread at a time" in text for text in wrong)
    assert param[0].item() == -(1 + sum(made))
    return "serialised, or refused while the other's step runs", "nothing"


def lr_that_is_no_number() -> tuple[str, str]:
    run = Run().step(3)
    before = run.facts()
    group = run.opt.param_groups[0]
    if engine_for(CPU).NAME != "eager":
        for value in ("fast", None, [0.1]):
            refused(lambda value=value: group.__setitem__("lr", value), TypeError, ValueError)
        assert run.unchanged_since(before)
        goes_on_like_stock(run)
    return "refused at the assignment (eager: at the step, by torch)", "nothing"


def lr_of_nan_or_inf() -> tuple[str, str]:
    for value in (math.nan, math.inf):
        runs = Run(fuse=False).step(2), Run(ours=False).step(2)
        for run in runs:
            run.opt.param_groups[0]["lr"] = value
            run.backward()
            run.opt.step()
        check(runs[0].params, runs[1].params)
    return "used as it is, as in stock torch", "the params"


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    inject: Callable[[], tuple[str, str]]

    @property
    def name(self) -> str:
        return self.inject.__name__.replace("_", " ")


FAULTS = [
    Fault(inject)
    for inject in (
        non_finite_gradients_with_a_scaler,
        non_finite_gradients_without_a_scaler,
        exception_in_the_closure,
        exception_in_a_hook_before_the_step,
        exception_in_a_hook_after_the_step,
        exception_in_the_launch,
        kernel_that_does_not_compile,
        out_of_memory_while_building_tables,
        checkpoint_of_something_else,
        moved_param,
        resized_param,
        retyped_param,
        swapped_param,
        killed_between_the_two_steps,
        two_optimizers_on_one_model,
        one_optimizer_in_two_threads,
        lr_that_is_no_number,
        lr_of_nan_or_inf,
    )
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_fault_is_survived_or_refused(fault, engine):
    happened, lost = fault.inject()
    assert happened and lost


def table() -> str:
    """All of it, as docs/faults.md has it."""
    rows = [f"| {fault.name} | {' | '.join(fault.inject())} |" for fault in FAULTS]
    head = "| fault | what happened | what was lost |\n| --- | --- | --- |"
    note = (
        "What happens when something outside goes wrong, and what is lost. `tests/test_faults.py` "
        "injects each\nfault on every engine; the table describes `native`, and says where `eager` "
        "differs."
    )
    return "\n".join(["# Faults", "", note, "", head, *rows]) + "\n"


def test_document_has_what_happens():
    with fused_sched.use_engine("native"):
        assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == table()


if __name__ == "__main__":
    with fused_sched.use_engine("native"):
        print(table(), end="")
