"""The example of docs/add_scheduler.md, applied to a copy of the package, does what it says.

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
