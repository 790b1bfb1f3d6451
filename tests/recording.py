"""A *recording*, which stands for a CUDA graph where there is no GPU.

While it is made, every part of the package believes that the stream captures, and launches are
noted, not run; a replay runs them with no help of the host.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fused_sched.engines import engine_for
from fused_sched.runtime import device_state
from tests.training import set_grads


@contextmanager
def capturing() -> Iterator[None]:
    """Within, the package believes that the current stream is being captured."""
    real = device_state.capturing
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("fused_sched.") and getattr(module, "capturing", None) is real:
                patch.setattr(module, "capturing", lambda device=None: True)
        yield


class Recording:
    """The launches of one captured region, and the gradients whose addresses they hold."""

    def __init__(self) -> None:
        self.grads: list[Tensor | None] = []
        self._launches: list[Any] = []

    @contextmanager
    def made(self) -> Iterator[None]:
        launches = engine_for(torch.device("cpu"))
        with pytest.MonkeyPatch.context() as patch:
            for name in ("update", "advance"):
                patch.setattr(launches, name, self._noting(getattr(launches, name)))
            with capturing():
                yield

    def _noting(self, launch: Any) -> Any:
        return lambda *args, **kwargs: self._launches.append((launch, args, kwargs))

    def replay(self, times: int = 1) -> None:
        for _ in range(times):
            for launch, args, kwargs in self._launches:
                launch(*args, **kwargs)


def record(opt: Any, params: list[Tensor], step: int = 0) -> Recording:
    """``opt.step()`` in a graph, with gradients that stay where they are."""
    set_grads(params, step)
    recording = Recording()
    recording.grads = [param.grad for param in params]
    with recording.made():
        opt.step()
    return recording
