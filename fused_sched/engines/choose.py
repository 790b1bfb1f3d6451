"""Which engine serves a device."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import ModuleType

import torch

from . import eager_engine, triton_engine

ENGINES: dict[str, ModuleType] = {"triton": triton_engine, "eager": eager_engine}
"""By name, in the order in which ``auto`` prefers them on CUDA."""

_VARIABLE = "FUSED_SCHED_ENGINE"
_forced: str | None = None


def available(device: torch.device | str) -> dict[str, str | None]:
    """Why an engine cannot serve a device; None where it can.

    Args:
        device: as ``torch.device`` takes it.
    """
    where = torch.device(device)
    return {name: engine.unavailable(where) for name, engine in ENGINES.items()}


def engine_for(device: torch.device) -> ModuleType:
    """The engine for a device: the one forced, else Triton on CUDA, else eager.

    Raises:
        ValueError: an unknown name is forced.
        RuntimeError: the forced engine cannot serve the device; says why.
    """
    name = _wanted()
    if name == "auto":
        serves = device.type == "cuda" and triton_engine.unavailable(device) is None
        return triton_engine if serves else eager_engine
    _check_name(name, "" if _forced else f"{_VARIABLE}: ")
    engine = ENGINES[name]
    reason = engine.unavailable(device)
    if reason is not None:
        raise RuntimeError(f"Engine {name!r} is not available on {device}: {reason}")
    return engine


def why(device: torch.device) -> str:
    """Why ``engine_for`` chose what it chose."""
    if _wanted() != "auto":
        return "forced by use_engine()" if _forced else f"forced by {_VARIABLE}"
    if engine_for(device) is triton_engine:
        return "the default on CUDA"
    if device.type != "cuda":
        return f"the default on {device.type}"
    return f"triton: {triton_engine.unavailable(device)}"


def _wanted() -> str:
    return _forced or os.environ.get(_VARIABLE) or "auto"


def _check_name(name: str, source: str = "") -> None:
    if name != "auto" and name not in ENGINES:
        known = ", ".join(repr(known) for known in ("auto", *ENGINES))
        raise ValueError(f"{source}Unknown engine {name!r}; expected one of {known}")


class _Restore(AbstractContextManager[None]):
    """Puts back what was forced before, when its ``with`` block ends."""

    def __init__(self, before: str | None) -> None:
        self._before = before

    def __exit__(self, *_: object) -> None:
        global _forced
        _forced = self._before


def use_engine(name: str) -> AbstractContextManager[None]:
    """Force an engine from here on; as a context manager, until the block ends.

    Args:
        name: ``"auto"``, ``"triton"`` or ``"eager"``. The variable ``FUSED_SCHED_ENGINE`` does the
            same for a whole process.

    Raises:
        ValueError: the name is unknown.
    """
    global _forced
    _check_name(name)
    before, _forced = _forced, name
    return _Restore(before)
