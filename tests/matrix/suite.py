"""A row: its environment, a first step from the wheel, and the suite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from .environments import checked, find_python, install, make_environment, run
from .page import Result
from .rows import LONG, QUICK, Row

TOOLS = ("pytest", "hypothesis", "matplotlib", "setuptools>=64", "wheel")
FULL_TOOLS = (
    *("pytest-xdist", "scikit-learn", "tqdm", "ruff~=0.17.0", "mypy~=2.4"),
    *("lightning", "accelerate", "transformers"),
)

# A first step from nowhere near the sources: what the wheel brings is used, and nothing compiled.
STEP = """
import torch, fused_sched
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.ones(3)
opt = fused_sched.optim.AdamW([param], lr=0.1)
scheduler = fused_sched.lr_scheduler.StepLR(opt, 2)
opt.step(); scheduler.step()
told = fused_sched.explain(opt)
assert told.engine == {"cpu": "native"}, told
"""

VERSIONS = """
import json, platform, numpy, torch, triton
found = {module.__name__: module.__version__ for module in (torch, triton, numpy)}
print(json.dumps(found | {"python": platform.python_version()}))
"""


class Broken(Exception):
    """A row that is there and fails before any test ends; the message is one line."""


def try_row(row: Row, folder: Path, wheel: Path, full: bool, result: Result) -> None:
    """Install, step once, run the suite; fills in `result`."""
    exact = (f"torch=={row.torch}", f"triton=={row.triton}", f"numpy=={row.numpy}")
    home = folder / row.name
    tools = (*TOOLS, *FULL_TOOLS) if full else TOOLS
    python = make_environment(find_python(row.python), home, (*exact, *tools))
    if full:
        install(python, "--no-deps", "timm", "lion-pytorch", "schedulefree")
    install(python, "--no-deps", "--force-reinstall", wheel)
    env = os.environ | {"XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = ""  # nothing but what is installed
    result.versions = json.loads(checked([python, "-c", VERSIONS], "no import", cwd=home, env=env))
    step = run([python, "-W", "error", "-c", STEP], cwd=home, env=env)
    if step.returncode or step.stderr:
        told = step.stderr.strip().splitlines() or [f"exit status {step.returncode}"]
        raise Broken(f"the wheel does not step: {told[-1][:200]}")
    suite = home / "suite"
    shutil.rmtree(suite, ignore_errors=True)
    others = shutil.ignore_patterns("fused_sched", "build", "*.egg-info")
    shutil.copytree(folder / "source", suite, ignore=others)
    (package,) = home.glob("lib/python*/site-packages/fused_sched")
    (suite / "fused_sched").symlink_to(package)
    tests = ("--ignore=tests/gpu", "tests") if full else ("--deselect", LONG, *QUICK)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=../junit.xml"]
    with (home / "log.txt").open("w") as log:
        done = subprocess.run(
            [*command, *tests], cwd=suite, env=env, stdout=log, stderr=subprocess.STDOUT
        )
    if done.returncode not in (0, 1):
        raise Broken(f"pytest ended with {done.returncode}: see {row.name}/log.txt")
    result.counts, result.failed = read_junit(home / "junit.xml")


def read_junit(path: Path) -> tuple[dict[str, int], list[str]]:
    """(counts, the names of the tests that failed) of a report by pytest."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None, path
    bad = [
        f"{case.get('classname', '').removeprefix('tests.')}: {case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = int(suite.get("skipped", 0))
    passed = int(suite.get("tests", 0)) - skipped - len(bad)
    return {"passed": passed, "skipped": skipped, "failed": len(bad)}, bad
