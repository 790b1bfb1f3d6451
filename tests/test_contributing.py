"""The guides' examples, applied to a copy of the package, do what the guides say.

Of docs/add_scheduler.md:

A block belongs to the file that was named last before it. A ``diff`` block changes the file: each
hunk (separated by ``@@``) replaces its context once, and one without context goes to the end. A
``python`` block is a new file.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPER = (ROOT / "docs" / "from_a_paper.md").read_text(encoding="utf-8")
TEXT = (ROOT / "docs" / "add_scheduler.md").read_text(encoding="utf-8")
FILE = r"(?:fused_sched|tests)/[\w/]+\.py|csrc/\w+\.\w+"
PIECE = re.compile(rf"`({FILE})`|^```(\w+)\n(.*?)^```", re.S | re.M)

TRY_ALL = """
import math

import torch

import fused_sched

for engine in ("eager", "native", "triton"):
    with fused_sched.use_engine(engine):
        param = torch.nn.Parameter(torch.ones(1))
        opt = fused_sched.optim.SGD([param], lr=0.1)
        sched = fused_sched.lr_scheduler.InverseSqrtLR(opt, 4)
        fused_sched.fuse(opt, sched, interval=1)
        param.grad = torch.ones(1)
        opt.found_inf = torch.zeros(1)  # a scaler is at work: lr is read from the device
        for _ in range(9):
            opt.step()
        assert sched.last_epoch == 9
        assert abs(opt.param_groups[0]["lr"] - 0.1 * math.sqrt(4 / 9)) < 1e-13
"""


def blocks() -> list[tuple[str, str, str]]:
    """(file, language, text) of every block that belongs to a file."""
    found, path = [], ""
    for match in PIECE.finditer(TEXT):
        named, language, text = match.groups()
        path = named or path
        if language and path:
            found.append((path, language, text))
    return found


def changed(source: str, hunk: list[str]) -> str:
    """The source with one hunk of a diff applied."""
    before = "".join(line[1:] for line in hunk if line[0] in " -")
    after = "".join(line[1:] for line in hunk if line[0] in " +")
    if not before:
        return source + after
    assert source.count(before) == 1, f"a diff's context is there not just once:\n{before}"
    return source.replace(before, after)


def apply_diff(path: Path, text: str) -> None:
    source = path.read_text(encoding="utf-8")
    for hunk in re.split(r"^@@\n", text, flags=re.M):
        source = changed(source, hunk.splitlines(keepends=True))
    path.write_text(source, encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the example in it."""
    target = tmp_path_factory.mktemp("extended")
    for folder in ("fused_sched", "csrc"):
        shutil.copytree(ROOT / folder, target / folder)
    for name, language, text in blocks():
        if not name.startswith("tests/"):
            path = target / name
            if language == "diff":
                apply_diff(path, text)
            else:
                assert not path.exists()
                path.write_text(text, encoding="utf-8")
    return target


def test_examples_work_on_the_package_as_it_is(extended, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", TRY_ALL],
        cwd=extended,
        env=os.environ
        | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(extended), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_new_files_pass_the_linter(extended, command):
    pytest.importorskip("ruff", reason="a tool of make lint")
    new = [extended / name for name, language, _ in blocks() if language == "python"]
    files = [str(path) for path in new if path.exists()]
    settings = ["--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), *settings, *files],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# -- docs/from_a_paper.md: PowerSign as one more optimizer of the package ------------------------

ROW = """
class PlainPowerSign(references.Reference):
    names = ("exp_avg",)
    counts = False

    def __init__(self, params, lr=1e-3, alpha=2.718281828459045, beta=0.9, maximize=False):
        defaults = {"lr": lr, "alpha": alpha, "beta": beta, "maximize": maximize}
        super().__init__(params, defaults)

    def advance(self, group, t, g, p, m):
        m = group["beta"] * m + (1 - group["beta"]) * g
        return p - float(group["lr"]) * group["alpha"] ** (g.sign() * m.sign()) * g, m


OPTIMIZERS = [
    _row("PowerSign", "default", PlainPowerSign),
    _row("PowerSign", "combo", PlainPowerSign, lr=0.01, alpha=2.0, beta=0.8, maximize=True),
"""
"""What goes into tests/cases.py, for the line that begins the table."""


def replace(path: Path, before: str, after: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(before) == 1
    path.write_text(source.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def with_power_sign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with PowerSign in it as the guide's last paragraph says, compiled."""
    copy = tmp_path_factory.mktemp("with_power_sign")
    for folder in ("fused_sched", "csrc", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so"))
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    code = re.search(r"^```python\n# power_sign\.py\n(.*?)^```", PAPER, re.S | re.M)
    assert code is not None
    (copy / "fused_sched/optim/power_sign.py").write_text(code[1], encoding="utf-8")
    names = copy / "fused_sched/optim/__init__.py"
    imports = re.findall(r"^from \..*\n", names.read_text(encoding="utf-8"), re.M)
    one = "from .power_sign import PowerSign\n"
    replace(names, "".join(imports), "".join(sorted([*imports, one])))
    replace(names, '    "NAdam",\n', '    "NAdam",\n    "PowerSign",\n')
    replace(copy / "tests/cases.py", "\nOPTIMIZERS = [\n", ROW)
    quick = {"FUSED_SCHED_CXXFLAGS": "-O0"}  # twice as fast to compile
    done = within(copy, "setup.py", "--quiet", "build_ext", "--inplace", **quick)
    assert done.returncode == 0 and "no compiled engine" not in done.stderr, done.stderr
    return copy


def within(copy: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python there."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(copy / "cache")} | env,
        capture_output=True,
        text=True,
    )


def test_an_optimizer_of_the_package_passes_its_tests(with_power_sign):
    tests = "tests/test_optimizers.py", "tests/test_state.py"
    command = "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "PowerSign"
    done = within(with_power_sign, *command)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 30
    assert not (with_power_sign / "cache").exists()  # the library has it: nothing else was compiled


@pytest.mark.parametrize(
    "tool", ["ruff check fused_sched", "ruff format --check fused_sched", "mypy"]
)
def test_an_optimizer_of_the_package_passes_the_linters(with_power_sign, tool):
    name, *arguments = tool.split()
    pytest.importorskip(name, reason="a tool of make lint")
    done = within(with_power_sign, "-m", name, *arguments)
    assert done.returncode == 0, done.stdout
