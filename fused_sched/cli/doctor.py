"""``python -m fused_sched doctor``: what is here, what is not and why, and what works."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import torch

import fused_sched
from fused_sched.engines import available, choose, engine_for, native_library

from .checks import (
    LR_TOLERANCE,
    PARAM_TOLERANCE,
    STEPS,
    Check,
    check_capture,
    check_steps,
    compilers,
)


@dataclass(frozen=True)
class Engine:
    """One engine on one device: why it cannot serve it, else how it did.

    Attributes:
        unavailable: the reason, None where it is available.
        sanity: a few steps; None if it is not available.
        capture: the same as replays of a CUDA graph; None likewise.
    """

    unavailable: str | None
    sanity: Check | None = None
    capture: Check | None = None

    def checks(self) -> Iterator[tuple[str, Check]]:
        """(what it was, how it went) of each."""
        for what, check in (("steps", self.sanity), ("capture", self.capture)):
            if check is not None:
                yield what, check


@dataclass(frozen=True)
class Device:
    """A device, the engine that a step takes there, and every engine by name.

    Attributes:
        chosen: that engine, and why; None where a step would raise.
        raises: what it would raise; None where it would not.
    """

    name: str
    chosen: str | None
    raises: str | None
    engines: dict[str, Engine]


@dataclass(frozen=True)
class Report:
    """What ``doctor`` found."""

    versions: dict[str, str]
    compilers: dict[str, str]
    devices: dict[str, Device]

    @property
    def passed(self) -> bool:
        """Whether a step can be made on every device, as stock torch would make it."""
        return self.agrees and not any(device.raises for device in self.devices.values())

    @property
    def agrees(self) -> bool:
        """Whether every engine that is here agrees with stock torch."""
        engines = (engine for device in self.devices.values() for engine in device.engines.values())
        return all(check.passed for engine in engines for _, check in engine.checks())


# -- versions and devices ------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What takes part in a step."""
    return {
        "fused_sched": fused_sched.__version__,
        "torch": str(torch.__version__),
        "triton": _triton_version(),
        "Python": platform.python_version(),
        "CUDA": _cuda_version(),
        "native": native_library.described(),
    }


def _triton_version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "not installed"


def _cuda_version() -> str:
    if torch.version.cuda is None:
        return "none, this torch was built without it"
    if not torch.cuda.is_available():
        return f"{torch.version.cuda}, but torch sees no GPU"
    return torch.version.cuda


def device_names() -> dict[str, str]:
    """Every device that a step may run on, and what it is."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {"cpu": cpu} | {f"cuda:{i}": torch.cuda.get_device_name(i) for i in gpus}


def _chosen(device: torch.device) -> tuple[str | None, str | None]:
    """(the engine that a step takes, and why; what the step would raise instead)."""
    try:
        return f"{engine_for(device).NAME} ({choose.why(device)})", None
    except (RuntimeError, ValueError) as error:
        return None, str(error)


# -- the report ----------------------------------------------------------------------------------


def examine() -> Report:
    """Look at every device; check every engine that it has."""
    devices = {
        name: Device(what, *_chosen(torch.device(name)), _examine_engines(torch.device(name)))
        for name, what in device_names().items()
    }
    return Report(versions(), compilers(), devices)


def _examine_engines(device: torch.device) -> dict[str, Engine]:
    return {
        name: Engine(reason) if reason else Engine(None, *_try_out(device, name))
        for name, reason in available(device).items()
    }


def _try_out(device: torch.device, engine: str) -> tuple[Check, Check]:
    return check_steps(device, engine), check_capture(device, engine)


def as_text(report: Report) -> str:
    """The report, made to be read."""
    compiling = {f"{name} compiler": found for name, found in report.compilers.items()}
    lines = [f"{name:<12} {found}" for name, found in (report.versions | compiling).items()]
    for name, device in report.devices.items():
        step = f"takes {device.chosen}" if device.chosen else f"would RAISE: {device.raises}"
        lines += ["", f"{name} ({device.name})", f"  a step {step}"]
        lines += [line for one in device.engines.items() for line in _findings(*one)]
    verdict = "agrees with" if report.agrees else "DIFFERS from"
    lines += [
        "",
        f"{STEPS} steps of AdamW with OneCycleLR: fused_sched {verdict} stock torch "
        f"(allowed: param {PARAM_TOLERANCE:.0e}, lr {LR_TOLERANCE:.0e} of its peak)",
    ]
    return "\n".join(lines)


def _findings(name: str, engine: Engine) -> list[str]:
    """An engine's lines."""
    if engine.unavailable is not None:
        return [f"  {name:<8} not available: {engine.unavailable}"]
    heads = [f"  {name:<8}", f"  {'':<8}"]
    return [
        f"{head} {what:<7} {_outcome(check)}"
        for head, (what, check) in zip(heads, engine.checks(), strict=True)
    ]


def _outcome(check: Check) -> str:
    if check.skipped is not None:
        return f"not tried: {check.skipped}"
    word = "ok" if check.passed else "FAILED"
    if check.error is not None:
        return f"{word}: {check.error}"
    return f"{word}: largest difference to stock torch: param {check.param:.1e}, lr {check.lr:.1e}"


def as_json(report: Report) -> str:
    """The report for programs: the dataclasses' fields, and ``passed``."""
    return json.dumps({**asdict(report), "passed": report.passed}, indent=2)


# -- the command ---------------------------------------------------------------------------------


def doctor(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if an engine is off or a step would raise."""
    report = examine()
    print(as_json(report) if arguments.json else as_text(report))
    return int(not report.passed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=doctor)
