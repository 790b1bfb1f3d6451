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
GUIDE = (ROOT / "docs" / "add_optimizer.md").read_text(encoding="utf-8")
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


# -- docs/add_optimizer.md: Lion as one more optimizer of the package ----------------------------

LION_ROW = """
class PlainLion(Optimizer):
    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), decay = group["betas"], 1.0 - group["lr"] * group["weight_decay"]
            for param in (p for p in group["params"] if p.grad is not None):
                kept = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                three = param, param.grad, kept
                if param.is_complex():
                    three = param, _, kept = [torch.view_as_real(one) for one in three]
                wide = torch.float64 if param.dtype == torch.float64 else torch.float32
                p, g, m = (one.to(wide) for one in three)
                u = beta1 * m + (1.0 - beta1) * g
                param.copy_(p * decay - group["lr"] * torch.sign(u))
                kept.copy_(beta2 * m + (1.0 - beta2) * g)


OPTIMIZERS = [
    _row("Lion", "default", PlainLion),
    _row("Lion", "combo", PlainLion, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
"""
"""What goes into tests/cases.py, for the line that begins the table."""


def replace(path: Path, before: str, after: str) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count(before) == 1
    path.write_text(source.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def with_lion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with Lion in it as the guide's last paragraph says, compiled."""
    copy = tmp_path_factory.mktemp("with_lion")
    for folder in ("fused_sched", "csrc", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.so"))
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, copy)
    lion = re.search(r"^```python\n# lion\.py\n(.*?)^```", GUIDE, re.S | re.M)
    assert lion is not None
    (copy / "fused_sched/optim/lion.py").write_text(lion[1], encoding="utf-8")
    names = copy / "fused_sched/optim/__init__.py"
    imports = re.findall(r"^from \..*\n", names.read_text(encoding="utf-8"), re.M)
    replace(names, "".join(imports), "".join(sorted([*imports, "from .lion import Lion\n"])))
    replace(names, '    "FusedOptimizer",\n', '    "FusedOptimizer",\n    "Lion",\n')
    replace(copy / "tests/cases.py", "\nOPTIMIZERS = [\n", LION_ROW)
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


def test_an_optimizer_of_the_package_passes_its_tests(with_lion):
    tests = "tests/test_optimizers.py", "tests/test_state.py"
    done = within(with_lion, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "Lion")
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 30
    assert not (with_lion / "cache").exists()  # Lion is in the library: nothing else was compiled


@pytest.mark.parametrize(
    "tool", ["ruff check fused_sched", "ruff format --check fused_sched", "mypy"]
)
def test_an_optimizer_of_the_package_passes_the_linters(with_lion, tool):
    name, *arguments = tool.split()
    pytest.importorskip(name, reason="a tool of make lint")
    done = within(with_lion, "-m", name, *arguments)
    assert done.returncode == 0, done.stdout
