"""The command line: ``python -m fused_sched doctor``."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from types import ModuleType

import torch
from torch import Tensor

import fused_sched
from fused_sched.engines import available, choose, engine_for, native_library, use_engine

STEPS = 3
PEAK_LR = 0.01
SHAPES = ((1,), (), (5, 7), (4099,))
"""Of the params of a sanity step; the last takes more than one program of the launch."""

PARAM_TOLERANCE = 1e-6
"""float32 params below 1.1 round by 6e-8, twice a step, here and in stock torch: at most 7e-7."""
LR_TOLERANCE = 1e-12
"""Of the peak."""


@dataclass(frozen=True)
class Sanity:
    """A few steps of one engine beside stock torch's.

    Attributes:
        param: largest difference of a param at the end, None if a step raised.
        lr: largest difference of lr after any step, relative to the peak; None if a step raised.
        error: what was raised, None if nothing was.
    """

    param: float | None
    lr: float | None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether rounding explains both differences; NaN it does not."""
        if self.param is None or self.lr is None:
            return False
        return self.param <= PARAM_TOLERANCE and self.lr <= LR_TOLERANCE


@dataclass(frozen=True)
class Engine:
    """One engine on one device: why it cannot serve it, else how it did."""

    unavailable: str | None
    sanity: Sanity | None


@dataclass(frozen=True)
class Device:
    """A device, the engine that a step takes there, and every engine by name."""

    name: str
    chosen: str
    engines: dict[str, Engine]


@dataclass(frozen=True)
class Report:
    """What ``doctor`` found."""

    versions: dict[str, str]
    devices: dict[str, Device]

    @property
    def passed(self) -> bool:
        """Whether every engine that is here agrees with stock torch."""
        engines = (engine for device in self.devices.values() for engine in device.engines.values())
        return all(engine.sanity is None or engine.sanity.passed for engine in engines)


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


def _chosen(device: torch.device) -> str:
    """The engine that a step takes, and why; or why it can take none."""
    try:
        return f"{engine_for(device).NAME} ({choose.why(device)})"
    except (RuntimeError, ValueError) as error:
        return f"none, it raises: {error}"


# -- the sanity step -----------------------------------------------------------------------------


def check(device: torch.device, engine: str) -> Sanity:
    """STEPS steps of AdamW with OneCycleLR fused into it, beside stock torch's."""
    try:
        with use_engine(engine):
            ours, our_lrs = _train(fused_sched.optim, fused_sched.lr_scheduler, device, fused=True)
        theirs, their_lrs = _train(torch.optim, torch.optim.lr_scheduler, device, fused=False)
    except Exception as error:  # whatever an engine dies of is the finding
        return Sanity(None, None, f"{type(error).__name__}: {error}")
    return Sanity(_largest(ours - theirs), _largest(our_lrs - their_lrs) / PEAK_LR)


def _train(
    optim: ModuleType, schedulers: ModuleType, device: torch.device, fused: bool
) -> tuple[Tensor, Tensor]:
    """(all params at the end, lr after each step), from the same values and gradients."""
    params = [torch.nn.Parameter(_values(shape, seed=0).to(device)) for shape in SHAPES]
    opt = optim.AdamW(params, lr=PEAK_LR, weight_decay=0.1)
    sched = schedulers.OneCycleLR(opt, max_lr=PEAK_LR, total_steps=10)
    if fused:
        fused_sched.fuse(opt, sched)
    lrs = []
    for step in range(STEPS):
        for param in params:
            param.grad = _values(param.shape, seed=1 + step).to(device)
        opt.step()
        if not fused:
            sched.step()
        lrs.append(opt.param_groups[0]["lr"])
    ends = torch.cat([param.detach().flatten().cpu() for param in params])
    return ends, torch.tensor(lrs, dtype=torch.float64)


def _values(shape: Sequence[int], seed: int) -> Tensor:
    """Between -1 and 1, the same ones every time."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _largest(differences: Tensor) -> float:
    return differences.abs().max().item()


# -- the report ----------------------------------------------------------------------------------


def examine() -> Report:
    """Look at every device; check every engine that it has."""
    devices = {
        name: Device(what, _chosen(torch.device(name)), _examine_engines(torch.device(name)))
        for name, what in device_names().items()
    }
    return Report(versions(), devices)


def _examine_engines(device: torch.device) -> dict[str, Engine]:
    return {
        name: Engine(reason, check(device, name) if reason is None else None)
        for name, reason in available(device).items()
    }


def as_text(report: Report) -> str:
    """The report, made to be read."""
    lines = [f"{name:<12} {version}" for name, version in report.versions.items()]
    for name, device in report.devices.items():
        lines += ["", f"{name} ({device.name})", f"  a step takes {device.chosen}"]
        lines += [f"  {name:<8} {_finding(engine)}" for name, engine in device.engines.items()]
    verdict = "agrees with" if report.passed else "DIFFERS from"
    lines += [
        "",
        f"{STEPS} steps of AdamW with OneCycleLR: fused_sched {verdict} stock torch "
        f"(allowed: param {PARAM_TOLERANCE:.0e}, lr {LR_TOLERANCE:.0e} of its peak)",
    ]
    return "\n".join(lines)


def _finding(engine: Engine) -> str:
    if engine.sanity is None:
        return f"not here: {engine.unavailable}"
    return f"{'ok' if engine.sanity.passed else 'OFF'}: {_outcome(engine.sanity)}"


def _outcome(sanity: Sanity) -> str:
    if sanity.error is not None:
        return sanity.error
    return f"largest difference to stock torch: param {sanity.param:.1e}, lr {sanity.lr:.1e}"


def as_json(report: Report) -> str:
    """The report for programs: the dataclasses' fields, and ``passed``."""
    return json.dumps({**asdict(report), "passed": report.passed}, indent=2)


# -- the command ---------------------------------------------------------------------------------


def doctor(arguments: argparse.Namespace) -> int:
    """Print the report; 1 if an engine is off."""
    report = examine()
    print(as_json(report) if arguments.json else as_text(report))
    return int(not report.passed)


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="python -m fused_sched", description="fused_sched from the command line."
    )
    commands = top.add_subparsers(required=True, metavar="command")
    what = "say which engines are here and why another is not, and check each against stock torch"
    command = commands.add_parser(
        "doctor", help=what, description=f"{what.capitalize()}. Exit status 1 if one is off."
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    command.set_defaults(run=doctor)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status."""
    arguments = parser().parse_args(argv)
    return int(arguments.run(arguments))
