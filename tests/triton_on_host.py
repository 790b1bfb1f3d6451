"""Triton as on a machine with a GPU, where there is none: it compiles, and what it loads is noted.

For a process of its own: ``TRITON_INTERPRET`` must be unset before the kernels are imported.
"""

from __future__ import annotations

from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fused_sched.engines import triton_engine

FUNCTION = 77
"""What stands for the handle of a loaded kernel."""


class _Utils:
    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    @staticmethod
    def load_binary(name: str, *_: Any) -> tuple[int, int, int, int, int]:
        """(module, function, registers, spills, threads at most)."""
        return 1, FUNCTION, 64, 0, 1024

    @staticmethod
    def unload_module(module: int) -> None:
        pass


class _Driver:
    """What Triton asks its driver for, up to the launch."""

    utils = _Utils()

    def __init__(self, launched: list[tuple[Any, ...]]) -> None:
        self._launched = launched

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            self._launched.append((source.fn.__name__, *arguments))

        return launch

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def serve(launched: list[tuple[Any, ...]]) -> None:
    """From here on the Triton engine serves CPU tensors with kernels for sm_90.

    Args:
        launched: takes a launch's kernel and what its launcher gets, which does nothing.
    """
    assert not knobs.runtime.interpret
    driver.set_active(_Driver(launched))
    triton_engine.unavailable = lambda device: None
