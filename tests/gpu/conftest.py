"""Fixtures of the suite for a GPU. Without one its bodies run on CPU tensors, see ``capture``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

# Before the first import of triton, whatever the environment says.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

import pytest

import fused_sched
from fused_sched.runtime import mirror, sending
from fused_sched.schedules import call_table, table
from tests.interpreter import quick

from .order import pytest_collection_modifyitems  # noqa: F401, a hook

_broken = False
"""The CUDA context of this process has failed; nothing after it means anything."""


@pytest.fixture
def device() -> torch.device:
    """The GPU; without one the CPU, under Triton's interpreter."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The GPU; skips the test without one."""
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


ENGINES = ["triton", "native"] if torch.cuda.is_available() else ["triton"]
"""Those that launch; the stand-in for a capture on a CPU knows Triton's launches."""


_CHECK = "_amp_foreach_non_finite_check_and_unscale_"
_check = getattr(torch, _CHECK)


def _check_as_cuda_does(grads: list[torch.Tensor], *scalars: torch.Tensor) -> None:
    """GradScaler's check, for the dtypes that CUDA has it for in torch 2.11; a CPU has bfloat16."""
    for grad in grads:
        if grad.dtype not in (torch.float16, torch.float32, torch.float64):
            raise NotImplementedError(f"{_CHECK} on CUDA has no {grad.dtype}")
    _check(grads, *scalars)


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request, monkeypatch) -> Iterator[str]:
    with fused_sched.use_engine(request.param):
        if torch.cuda.is_available():
            yield request.param
        else:
            for module in (mirror, sending):
                monkeypatch.setattr(module, "capturable", lambda device: True)
            monkeypatch.setattr(torch, _CHECK, _check_as_cuda_does)
            with quick():
                yield request.param


@pytest.fixture(autouse=True)
def _tables_are_complete(monkeypatch) -> None:
    """What is computed ahead of a first capture is complete, however busy the machine is."""
    for module in (call_table, table):
        monkeypatch.setattr(module, "FIRST_SECONDS", 60.0)


@pytest.fixture(autouse=True)
def _kernels_end_well() -> Iterator[None]:
    """A kernel's bad access shows at the next synchronization: let it be this test's."""
    global _broken
    yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            _broken = True
            raise


def pytest_runtest_logfinish(nodeid: str, location: object) -> None:
    """Under xdist leave a broken process to be replaced: one failure does not hide the others."""
    if _broken and "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(1)
