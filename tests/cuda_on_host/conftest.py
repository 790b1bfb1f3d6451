"""The engines of a GPU on the stand-in, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fused_sched
from tests.cuda_on_host import stand_in, triton_kernels

ENGINES = {"native": stand_in.serve, "triton": triton_kernels.serve}


@pytest.fixture(autouse=True, params=ENGINES)
def streams(request, monkeypatch) -> Iterator[stand_in.Streams]:
    """torch's account of streams; one GPU, and nothing is being captured."""
    ENGINES[request.param](monkeypatch)
    with fused_sched.use_engine(request.param):
        yield stand_in.Streams(monkeypatch)
    stand_in.device().cuda_on_host_capture(0, None)
    stand_in.device().cuda_on_host_device(0)
    stand_in.device().cuda_on_host_fail(0)
