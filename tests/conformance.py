"""`--conformance FILE` writes what the run compared with stock torch, and the largest differences.

A plugin of pytest (`-p tests.conformance`), used by `make conformance`; the document it writes is
docs/conformance.md. `--times-examples N` lets hypothesis tell N times as many random stories.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from tests import differences

PROPERTY = "differences"

WHAT = {
    "test_optimizers": "Every option, dtype, layout and edit of each optimizer",
    "test_optim_db": "torch's own tables of optimizer inputs and errors (`optim_db`)",
    "test_packages": "Lion, ADOPT and Adan, beside lion-pytorch and timm",
    "test_schedule_free": "Schedule-Free in both modes, beside schedulefree",
    "test_recurrences": "Numbers that one step hands the next, of a param and of a group",
    "test_own_rules": "Rules of one's own",
    "test_state": "State, checkpoints both ways, copies, cyclic references",
    "test_scaler": "GradScaler: overflows at the first step, in a row, in the last step",
    "test_schedules": "Every scheduler on the device, step by step",
    "test_fused_mode": "Schedules in the step: edits, loads, composites, late groups, ends",
    "test_values": "`scheduler.values()`: what is to come",
    "test_hyper": "Schedules of other hyperparameters",
    "test_random_schedules": "Random trees of schedulers under random use (hypothesis)",
    "test_long_horizons": "A million steps of every scheduler",
    "test_transformers": "The schedules of `transformers.get_scheduler`",
    "test_convert": "Conversion of a stock pair, in the middle of a run",
    "test_groups": "`param_groups` read, written, replaced, wrapped",
    "test_cached": "Steps without Python",
    "test_errors": "Messages and types of errors, warnings",
    "test_faults": "[Faults](faults.md), injected",
    "test_compile": "`torch.compile` around the training step",
    "test_recipes": "Frameworks, run as a user would",
}

QUANTITIES = {
    "schedule": "lr, momentum, betas (of their peak)",
    "params float64": "params float64",
    "params float32": "params float32",
    "params bfloat16": "params bfloat16",
    "params float16": "params float16",
    "state float32": "moments float32",
}

PACKAGES = (
    *("torch", "triton", "lightning", "accelerate", "transformers", "timm", "lion-pytorch"),
    *("schedulefree", "hypothesis"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--conformance", type=Path, metavar="FILE", help="write the document")
    group.addoption("--times-examples", type=int, default=1, metavar="N")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    differences.take()
    yield
    item.user_properties.append((PROPERTY, differences.take()))


class Account:
    """What the tests of one file saw."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self.skipped = 0
        self.seen: dict[str, float] = {}

    def add(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped += 1
        elif report.failed:
            self.failed += 1
        elif report.when == "call":
            self.passed += 1
            differences.merge(self.seen, dict(report.user_properties).get(PROPERTY, {}))

    def row(self, what: str) -> list[str]:
        tests = ", ".join(
            f"{count} {name}"
            for name, count in vars(self).items()
            if name != "seen" and (count or name == "passed")
        )
        examples = self.seen.get(differences.EXAMPLES)
        numbers = [self.seen.get(name) for name in QUANTITIES]
        told = ["" if one is None else f"{one:.1e}" if one else "0" for one in numbers]
        return [what, tests, "" if examples is None else f"{int(examples):,}", *told]


class Writer:
    """Collects the reports, also those of xdist's workers, and writes the document."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.accounts = {name: Account() for name in WHAT}
        self.others = Account()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = Path(report.location[0]).stem
        self.accounts.get(name, self.others).add(report)

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(self.document(), encoding="utf-8")

    def document(self) -> str:
        rows = [account.row(WHAT[name]) for name, account in self.accounts.items()]
        rows.append(self.others.row("Everything else"))
        head = ["what", "tests", "examples", *QUANTITIES.values()]
        lines = [head, ["---"] * 3 + ["---:"] * len(QUANTITIES), *rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"""# Conformance

What `make conformance` compared with stock torch, on every engine that runs on a CPU, and the
largest difference it found. Schedules: relative to the largest value each has had, read in float64
from the record that the launch uses. Params and moments: relative to the largest element of the
tensor, against torch's for-loop, after up to a few hundred steps; the tolerance is 1.2e-6 in
float32. Where a cell is empty, the tests compare messages, keys, counts or bits, or the recipe
compares by itself.

{table}

{versions()}.
"""


def versions() -> str:
    """Of what took part."""
    told = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            told.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            told.append(f"{package} absent")
    return ", ".join(told)


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("conformance")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(path))
