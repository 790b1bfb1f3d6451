"""The native engine on the stand-in, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import fused_sched
from tests.cuda_on_host import stand_in


@pytest.fixture(autouse=True)
def streams(monkeypatch) -> Iterator[stand_in.Streams]:
    """torch's account of streams; one GPU, and nothing is being captured."""
    stand_in.serve(monkeypatch)
    with fused_sched.use_engine("native"):
        yield stand_in.Streams(monkeypatch)
    stand_in.device().cuda_on_host_capture(0, None)
    stand_in.device().cuda_on_host_device(0)
