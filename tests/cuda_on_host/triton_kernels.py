"""Triton's compiled kernels on the stand-in: what a launch gets is what the CPU engine runs.

A kernel's parameters arrive as CUDA's driver gets them, so a wrong one shows in the params.
"""

from __future__ import annotations

import ctypes
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import triton.language as tl

from fused_sched.engines import native_library, native_rules, triton_cached, triton_engine
from fused_sched.engines.native_structs import ADVANCE, UPDATE
from fused_sched.kernels.rules import bind
from fused_sched.runtime.cached import CachedLaunches
from fused_sched.swap import OPTIMIZERS
from fused_sched.tables import layout
from tests.cuda_on_host import stand_in

_DTYPES = {
    tl.float32: layout.FLOAT32,
    tl.bfloat16: layout.BFLOAT16,
    tl.float16: layout.FLOAT16,
    tl.float64: layout.FLOAT64,
}

_POINTERS = (
    "addresses",
    "info",
    "offsets",
    "recurrences",
    "record",
    "clock",
    "ops",
    "lanes",
    "aux",
)
_SIZES = {
    "rows": "num_rows",
    "tensors": "num_tensors",
    "params": "num_params",
    "columns": "num_columns",
    "groups": "G",
}
_RULES = [cls._rule for cls in OPTIMIZERS.values()]


class Handle:
    """As Triton's ``CompiledKernel`` of the update kernel; its function is its number."""

    made: dict[int, Handle] = {}

    def __init__(self, kernel: Any, args: Any) -> None:
        names = inspect.signature(kernel.fn).parameters
        constants = [
            p.annotation is tl.constexpr or "constexpr" in str(p.annotation) for p in names.values()
        ]
        kinds = ["constexpr" if constant else "*" for constant in constants]
        self.src = SimpleNamespace(signature=dict(zip(names, kinds, strict=True)))
        self.metadata = SimpleNamespace(
            num_ctas=1, num_warps=4, shared=0, target=SimpleNamespace(warp_size=32)
        )
        self._args = dict(zip(names, args, strict=True))
        self._names = [name for name, kind in self.src.signature.items() if kind != "constexpr"]
        self.count = len(self._names)
        self._ends = (ctypes.c_int64 * 10_000)()
        self.function = len(self.made) + 1
        self.made[self.function] = self

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        """Triton's own way to launch it."""

        def launch(*args: Any) -> None:
            words = [value for _, value in triton_cached._parameters(self, args)]
            slots = (ctypes.c_int64 * len(words))(*words)
            start = ctypes.addressof(slots)
            places = (ctypes.c_void_p * len(words))(*(start + 8 * i for i in range(len(words))))
            ones = (1,) * 5
            stand_in.device().cuLaunchKernel(self.function, grid[0], *ones, 0, None, places, None)

        return launch

    def run(self, parameters: Any) -> None:
        """The launch that CUDA's driver was asked for, by the CPU engine."""
        values = {}
        for name, place in zip(self._names, parameters, strict=True):
            kind = ctypes.c_int64 if name.endswith("_ptr") else ctypes.c_int32
            values[name] = kind.from_address(place).value
        here = self._args
        numbers = [_DTYPES[dtype] for kind in here["KINDS"] for dtype in kind]
        kinds = (ctypes.c_int64 * len(numbers))(*numbers)
        rule = next(rule for rule in _RULES if here["RULE"] is bind(rule).rule)
        if not values["num_rows"]:
            values |= {"ops_ptr": 0, "lanes_ptr": 0, "aux_ptr": 0}
        fields = {
            **{name: values[f"{name}_ptr"] for name in _POINTERS},
            **{name: values[theirs] for name, theirs in _SIZES.items()},
            "scale": values["scale_ptr"] if here["UNSCALE"] else 0,
            "found_inf": values["found_inf_ptr"] if here["SCALER"] else 0,
            "kinds": ctypes.addressof(kinds),
            "ends": ctypes.addressof(self._ends),
            "slots": layout.STATE0 + len(rule.states),
            "rule": native_rules.cpu_rule(rule),
            "advance": values["advance"],
        }
        native_library.load().update(UPDATE.pack(fields))


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(ctypes.c_void_p))
def _kernel(function: int, parameters: Any) -> None:
    handle = Handle.made[function]
    handle.run([parameters[i] for i in range(handle.count)])


def serve(patch: pytest.MonkeyPatch) -> None:
    """The Triton engine launches kernels on CPU tensors, and its cached launches do."""
    module, device = stand_in.module(), stand_in.device()
    assert module.find_driver(str(stand_in.library())) is None
    device.cuda_on_host_kernel(_kernel)

    def compile_all(jobs: Any) -> None:
        for kernel, key, args, _ in jobs:
            if key not in triton_engine._compiled and kernel.__name__ == "update_kernel":
                triton_engine._compiled[key] = Handle(kernel, args)

    def advance(*args: Any, **kwargs: Any) -> None:
        values = native_library.advance_values(*_filled(*args, **kwargs))
        native_library.load().advance(ADVANCE.pack(values))

    patch.setattr(triton_engine, "_compiled", {})
    patch.setattr(triton_engine, "_compile", compile_all)
    patch.setattr(triton_engine, "_interpreting", lambda: False)
    patch.setattr(triton_engine, "unavailable", lambda device: None)
    patch.setattr(triton_engine, "advance", advance)
    patch.setattr(triton_cached, "_serves", lambda device: True)
    patch.setattr(triton_cached, "_library", lambda: module)
    patch.setattr(CachedLaunches, "keep_schedule", lambda *_: None)  # its advance is the CPU's


def _filled(
    buffer: Any, program: Any, steps: int = 1, metric: Any = None, trace: Any = None
) -> tuple[Any, ...]:
    return buffer, program, steps, metric, trace
