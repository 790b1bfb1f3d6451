"""Which engine serves a device."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from types import ModuleType

import torch

from fused_sched.rules.rule import Rule

from . import eager_engine, native_engine, triton_engine

ENGINES: dict[str, ModuleType] = {
    "triton": triton_engine,
    "native": native_engine,
    "eager": eager_engine,
}

_DEFAULTS = {"cuda": triton_engine, "cpu": native_engine}
"""What ``auto`` prefers, by the type of the device."""

SERVED = frozenset(_DEFAULTS)
"""Types of devices that engines serve; on others it is torch's own step, whatever is forced."""

_VARIABLE = "FUSED_SCHED_ENGINE"
FORCED: dict[None, str | None] = {None: None}
"""The engine forced by ``use_engine``, under None: a place that a cached launch can look at."""


def available(device: torch.device | str) -> dict[str, str | None]:
    """Why an engine cannot serve a device; None where it can.

    Args:
        device: as ``torch.device`` takes it.
    """
    where = torch.device(device)
    return {name: engine.unavailable(where) for name, engine in ENGINES.items()}


def engine_for(device: torch.device, rule: Rule | None = None) -> ModuleType:
    """The engine for a device: the one forced, else Triton on CUDA and native on CPU, else eager.

    Args:
        rule: what it is to run; None asks for the device alone.

    Raises:
        ValueError: an unknown name is forced.
        RuntimeError: the forced engine cannot serve the device or the rule; says why.
    """
    name, kind = _wanted(), device.type
    _check_name(name, "" if FORCED[None] else f"{_VARIABLE}: ")
    if kind not in SERVED:
        return eager_engine
    if name == "auto":
        default = _DEFAULTS[kind]
        return default if _reason(default, device, rule) is None else eager_engine
    engine = ENGINES[name]
    reason = _reason(engine, device, rule)
    if reason is not None:
        raise RuntimeError(f"Engine {name!r} is not available on {device}: {reason}")
    return engine


def _reason(engine: ModuleType, device: torch.device, rule: Rule | None) -> str | None:
    reason = engine.unavailable(device)
    return engine.lacks(rule, device) if reason is None and rule is not None else reason


def why(device: torch.device, rule: Rule | None = None) -> str:
    """Why ``engine_for`` chose what it chose."""
    if device.type not in SERVED:
        return f"torch's own step: no engine serves {device.type}"
    if _wanted() != "auto":
        return "forced by use_engine()" if FORCED[None] else f"forced by {_VARIABLE}"
    default = _DEFAULTS[device.type]
    missing = _reason(default, device, rule)
    return f"the default on {device.type}" if missing is None else f"{default.NAME}: {missing}"


def _wanted() -> str:
    return FORCED[None] or os.environ.get(_VARIABLE) or "auto"


def _check_name(name: str, source: str = "") -> None:
    if name != "auto" and name not in ENGINES:
        known = ", ".join(repr(known) for known in ("auto", *ENGINES))
        raise ValueError(f"{source}Unknown engine {name!r}; expected one of {known}")


class _Restore(AbstractContextManager[None]):
    """Puts back what was forced before, when its ``with`` block ends."""

    def __init__(self, before: str | None) -> None:
        self._before = before

    def __exit__(self, *_: object) -> None:
        FORCED[None] = self._before


def use_engine(name: str) -> AbstractContextManager[None]:
    """Force an engine from here on; as a context manager, until the block ends.

    Args:
        name: ``"auto"``, ``"triton"``, ``"native"`` or ``"eager"``. The variable
            ``FUSED_SCHED_ENGINE`` does the same for a whole process.

    Raises:
        ValueError: the name is unknown.
    """
    _check_name(name)
    before, FORCED[None] = FORCED[None], name
    return _Restore(before)
