"""Fixtures of the whole suite."""

from __future__ import annotations

import os

# Before the first import of triton: the Triton engine then runs on CPU tensors.
os.environ["TRITON_INTERPRET"] = "1"

import pytest

import fused_sched


@pytest.fixture(params=["triton", "eager"])
def engine(request):
    """Every engine that a CPU has; the test runs under it."""
    with fused_sched.use_engine(request.param):
        yield request.param
