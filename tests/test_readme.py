"""README.md is true: its code runs, its names and files exist, its errors are the package's."""

from __future__ import annotations

import ast
import inspect
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_sched
from fused_sched.engines import available

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
GPU = torch.cuda.is_available() and available("cuda")["triton"] is None


def blocks(language: str) -> list[str]:
    """The text of every block in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """The text under a heading."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def quoted(text: str, pattern: str) -> list[str]:
    """What stands between backticks and matches, in order, once."""
    return list(dict.fromkeys(re.findall(rf"`({pattern})`", text)))


def row(start: str) -> str:
    """The lines of the table of what is supported whose first cell starts so."""
    lines = [
        line for line in section("What is supported").splitlines() if line.startswith(f"| {start}")
    ]
    assert lines, start
    return "\n".join(lines)


# -- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs_and_prints_what_is_shown(code, capsys, monkeypatch):
    monkeypatch.delenv("FUSED_SCHED_ENGINE", raising=False)
    compiled = compile(code, "README.md", "exec")
    if "cuda" in code and not GPU:
        return
    exec(compiled, {})
    shown = TEXT.split(code)[1].split("```text\n")[1:2] if "explain(" in code else []
    printed = capsys.readouterr().out
    assert [text.split("```")[0] for text in shown] in ([], [printed])


def train(lines: list[str]) -> tuple[torch.Tensor, float]:
    """(the params, lr) after the loop of the swap's section."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    batches = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(10)]
    names: dict[str, Any] = {"torch": torch, "model": model, "batches": batches}
    exec("\n".join(lines), names)
    params = torch.cat([param.detach().flatten() for param in model.parameters()])
    return params, names["opt"].param_groups[0]["lr"]


def test_swap_changes_six_lines_and_no_result():
    (diff,) = blocks("diff")
    lines = diff.splitlines()
    assert sum(line[0] in "+-" for line in lines) == 6
    before, lr_before = train([line[1:] for line in lines if line[0] != "+"])
    after, lr_after = train([line[1:] for line in lines if line[0] != "-"])
    torch.testing.assert_close(after, before)
    assert lr_after == pytest.approx(lr_before, abs=1e-14)


# -- names ---------------------------------------------------------------------------------------


def test_table_names_every_optimizer():
    assert sorted(quoted(row("Optimizers"), r"[A-Z]\w+")) == sorted(fused_sched.optim.__all__)


def test_table_names_every_scheduler():
    named = set(quoted(row("Schedulers"), r"[A-Z]\w+"))
    assert named == set(fused_sched.lr_scheduler.__all__)


def test_table_names_every_engine():
    assert quoted(row("Engine"), r"\w+") == list(available("cpu"))


def test_table_names_dtypes_that_are_updated():
    for name in re.findall(r"(?:b?float|complex)\d+", row("Param dtypes")):
        param = torch.nn.Parameter(torch.ones(3, dtype=getattr(torch, name)))
        param.grad = torch.ones_like(param)
        fused_sched.optim.AdamW([param], lr=0.1).step()
        assert not torch.equal(param, torch.ones_like(param))


def test_dotted_names_resolve():
    names = set(re.findall(r"\bfused_sched((?:\.[A-Za-z]\w*)+)", TEXT))
    assert ".fuse" in names
    for name in names:
        assert reduce(getattr, name[1:].split("."), fused_sched) is not None


def test_arguments_of_fuse_exist():
    calls = "".join(re.findall(r"fuse\([^()]*(?:\([^()]*\))?[^()]*\)", TEXT))
    arguments = set(re.findall(r"(\w+)=", calls))
    assert arguments == {"interval", "advance_on_skip"}
    assert arguments < set(inspect.signature(fused_sched.fuse).parameters)


# -- files and commands --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_resolve(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    used = re.findall(r"(?:^|`)make (\w+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
    assert used and set(used) <= targets


def test_benchmark_markers_stand_once():
    for marker in ("<!-- bench:start -->", "<!-- bench:end -->"):
        assert TEXT.count(marker) == 1


# -- errors --------------------------------------------------------------------------------------


def messages() -> str:
    """Every string of the package, one a line, with … for what is filled in."""
    found = []
    for path in (ROOT / "fused_sched").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                found.append("".join(p if isinstance(p, str) else "…" for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_errors_are_the_packages_own():
    listed = re.findall(r"^\| `(.*?)` \|", section("Errors"), re.MULTILINE)
    assert len(listed) > 5
    known = messages()
    assert [text for text in listed if text.removesuffix("…").strip() not in known] == []
