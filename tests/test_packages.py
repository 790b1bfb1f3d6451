"""Optimizers that torch lacks, against the packages that have them, where those are installed."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.training import OURS, STEPS, check, named, set_grads, stepped, three, train


@pytest.fixture(autouse=True, scope="module")
def timm() -> Iterator[None]:
    """timm's optimizers without its models, which import torchvision."""
    found = importlib.util.find_spec("timm")
    for name, below in (("timm", ""), ("timm.optim", "optim")) if found is not None else ():
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(Path(path) / below) for path in found.submodule_search_locations]
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        del sys.modules[name]


@dataclass(frozen=True)
class Package:
    """One optimizer of a package, and what it is called with there and here.

    Args:
        theirs: module and class.
        only: of it alone, so that its own for-loop runs.
    """

    name: str
    theirs: str
    kwargs: dict[str, Any]
    only: dict[str, Any] = field(default_factory=dict)
    interpreted: bool = True

    @property
    def id(self) -> str:
        given = "-".join(f"{key}={value}" for key, value in self.kwargs.items())
        return f"{self.theirs}-{given or 'default'}".replace(" ", "")

    def ours(self, params: Any) -> Any:
        return getattr(OURS, self.name)(params, **self.kwargs)

    def stock(self, params: Any) -> Any:
        module, _, name = self.theirs.partition(":")
        pytest.importorskip(module.partition(".")[0], reason="a package that has the rule")
        made = getattr(importlib.import_module(module), name)
        return made(params, **self.kwargs, **self.only)


def _rows(name: str, theirs: str, *kwargs: dict[str, Any], **only: Any) -> list[Package]:
    return [Package(name, theirs, options, only) for options in kwargs]


PACKAGES = [
    *_rows(
        "Lion",
        "lion_pytorch:Lion",
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.01, "decoupled_weight_decay": True},
    ),
    *_rows(
        "Lion",
        "timm.optim.lion:Lion",
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "maximize": True},
        foreach=False,
    ),
    *_rows(
        "ADOPT",
        "timm.optim.adopt:Adopt",
        {},
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3, "clip_exp": None, "weight_decay": 0.1},
        {"lr": 0.01, "clip_exp": 0.1, "weight_decay": 0.1, "decoupled": True, "maximize": True},
        foreach=False,
    ),
    *_rows(
        "Adan",
        "timm.optim.adan:Adan",
        {},
        {"lr": 0.01, "betas": (0.8, 0.7, 0.95), "eps": 1e-3, "weight_decay": 0.1},
        {"lr": 0.01, "weight_decay": 0.1, "no_prox": True},
        foreach=False,
    ),
]


def doubles() -> list[Tensor]:
    return [param.detach().double().requires_grad_() for param in three()]


@pytest.mark.parametrize(**stepped(PACKAGES))
def test_steps_in_float64_equal_the_packages(row, engine):
    ours, theirs = doubles(), doubles()
    train(row.ours(ours), ours, range(2 * STEPS))
    train(row.stock(theirs), theirs, range(2 * STEPS))
    check(ours, theirs)


@pytest.mark.parametrize("row", **named(PACKAGES))
def test_checkpoints_go_both_ways(row):
    """Theirs, ours, theirs; theirs alone is the reference."""
    mixed, alone = doubles(), doubles()
    reference = row.stock(alone)
    opts = row.stock(mixed), row.ours(mixed), row.stock(mixed)
    for turn, opt in enumerate(opts):
        if turn:
            opt.load_state_dict(opts[turn - 1].state_dict())
        steps = range(2 * turn, 2 * turn + 2)
        train(opt, mixed, steps)
        train(reference, alone, steps)
    check(mixed, alone)


@pytest.mark.parametrize("row", **named(PACKAGES[:3]))
def test_param_groups_and_state_are_the_packages(row):
    made = []
    for build in (row.ours, row.stock):
        params = three()
        opt = build(params)
        set_grads(params, 0)
        opt.step()
        made.append(opt)
    ours, theirs = made
    added = {"init_lr"} if row.kwargs.get("decoupled_weight_decay") else set()
    assert ours.param_groups[0].keys() - added == theirs.param_groups[0].keys()
    assert [set(s) for s in ours.state.values()] == [set(s) for s in theirs.state.values()]
