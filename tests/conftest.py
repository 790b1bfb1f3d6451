"""Fixtures of the whole suite."""

from __future__ import annotations

import os

# Before the first import of triton: the Triton engine then runs on CPU tensors.
os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch

import fused_sched
from fused_sched.runtime import explicit, stepper
from fused_sched.schedules import base
from tests.interpreter import quick, round_as_gpus_do

LONGEST = ("test_cuda_build.py", "test_static.py", "test_fused_mode.py", "test_contributing.py")
"""Files of a minute or so."""

torch.set_num_threads(1)  # the suite runs in parallel, on tensors that are small


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker of `--dist loadfile` is left alone with one."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def rounding():
    with round_as_gpus_do():
        yield


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every test, in whatever order they run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def wide_numbers(request):
    """Torch keeps recurrences in the default dtype: for float64 params they are float64 too."""
    arguments = getattr(request.node, "callspec", None)
    row, dtype = (arguments.params.get(name) if arguments else None for name in ("row", "dtype"))
    cls = getattr(fused_sched.optim, getattr(row, "name", ""), None)
    wide = dtype in (torch.float64, torch.complex128)
    if not wide or not getattr(cls, "recurrences", ()):
        yield
        return
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["triton", "native", "eager"])
def engine(request):
    """Every engine that a CPU has; the test runs under it."""
    with fused_sched.use_engine(request.param), quick():
        yield request.param


@pytest.fixture(params=["triton", "native"])
def launch_engine(request):
    """The engines that launch; on CPU tensors Triton does so in its interpreter."""
    with fused_sched.use_engine(request.param), quick():
        yield request.param


@pytest.fixture
def whole_steps(monkeypatch):
    """No cached launches and no short first ones, as on the engines that have none."""
    monkeypatch.setattr(stepper, "make_first_step", lambda *_: False)
    monkeypatch.setattr(stepper, "keep_step", lambda *_: None)
    monkeypatch.setattr(explicit, "keep_schedule", lambda *_: None)


@pytest.fixture
def short_runs(monkeypatch):
    """The interpreter at twice its speed, and tables of a few hundred steps."""
    monkeypatch.setattr(base, "DEFAULT_HORIZON", 200)
    with quick():
        yield
