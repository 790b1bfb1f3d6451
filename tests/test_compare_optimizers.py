"""examples/compare_optimizers.py runs as a user runs it, on every rule that the package has."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fused_sched
from fused_sched.optim import FusedOptimizer

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PNG = b"\x89PNG"


class Shrinking(FusedOptimizer):
    """A rule that neither torch nor a package has: gradient descent with weight decay."""

    counts_steps = False

    def __init__(self, params, lr=1e-2, decay=0.5):
        super().__init__(params, {"lr": lr, "decay": decay})

    @staticmethod
    def coefficients(lr, decay, step):
        return lr, decay

    @staticmethod
    def rule(p, g, c):
        lr, decay = c
        return (p - lr * (g + decay * p),)


@pytest.fixture
def example(monkeypatch) -> ModuleType:
    """The script as a module; it leaves torch's threads as they are."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    return importlib.import_module("compare_optimizers")


@pytest.fixture
def shrinking(monkeypatch) -> None:
    """The package's only rule, as if a file of fused_sched/optim had it."""
    monkeypatch.setattr(fused_sched.optim, "Shrinking", Shrinking, raising=False)
    monkeypatch.setattr(fused_sched.optim, "__all__", ["Shrinking"])


SHORT = ["--tasks", "digits", "--steps", "10", "--out", os.devnull]


def test_runs_as_a_script_and_writes_a_table_and_a_figure(tmp_path):
    figure = tmp_path / "losses.png"
    options = ["--rules", "SGD", "RMSprop", "--steps", "6", "--out", str(figure)]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "compare_optimizers.py"), *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(digits|text) +(\w+) +(torch(?: fused)?) ", done.stdout, re.MULTILINE)
    wanted = [("SGD", "torch fused"), ("RMSprop", "torch")]
    assert rows == [(task, *row) for task in ("digits", "text") for row in wanted]
    assert "training" in done.stderr and "4/4" in done.stderr
    assert figure.read_bytes().startswith(PNG)


def test_every_rule_has_an_original_and_a_peak(example):
    assert example.rules() == [name for name in fused_sched.optim.__all__ if name[:5] != "Fused"]
    stock = {name for name in example.rules() if hasattr(torch.optim, name)}
    for rule in example.rules():
        assert example.original(rule).name.startswith("torch") == (rule in stock)
        assert example.peak_of(rule) > 0.0
    assert {*example.OPTIONS} <= stock


def test_a_rule_that_nobody_else_has_is_compared_with_its_formula(example, shrinking, capsys):
    assert example.main(SHORT) == 0
    assert re.search(r"^digits +Shrinking +its formula ", capsys.readouterr().out, re.MULTILINE)


def test_a_package_serves_what_torch_lacks(example):
    lion = pytest.importorskip("lion_pytorch").Lion
    side = example.original("LION")
    assert (side.name, side.make) == ("lion_pytorch", lion)


def another_rule(side):
    return replace(side, make=partial(side.make, decay=50.0))


def another_schedule(side):
    def schedule(opt, max_lr, **arguments):
        return side.schedule(opt, max_lr=1.001 * max_lr, **arguments)

    return replace(side, schedule=schedule)


@pytest.mark.parametrize(
    ("fault", "told"), [(another_rule, "losses differ"), (another_schedule, "lr differs")]
)
def test_what_differs_fails(fault, told, example, shrinking, monkeypatch, capsys):
    right = example.ours
    monkeypatch.setattr(example, "ours", lambda rule: fault(right(rule)))
    assert example.main(SHORT) == 1
    assert f"FAILED digits, Shrinking: {told} by" in capsys.readouterr().err
