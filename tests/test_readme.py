"""README.md is true: its code runs, its names and files exist."""

from __future__ import annotations

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


# -- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs(code, monkeypatch):
    monkeypatch.delenv("FUSED_SCHED_ENGINE", raising=False)
    compiled = compile(code, "README.md", "exec")
    if "cuda" in code and not GPU:
        return
    exec(compiled, {})


@pytest.mark.parametrize(
    ("code", "printed"),
    re.findall(r"^```python\n([^`]*)```\n\n```text\n([^`]*)```", TEXT, re.MULTILINE),
)
def test_code_prints_what_it_says(code, printed, monkeypatch, capsys):
    monkeypatch.delenv("FUSED_SCHED_ENGINE", raising=False)
    exec(code, {})
    assert capsys.readouterr().out == printed


def train(lines: list[str]) -> tuple[torch.Tensor, float]:
    """(the params, lr) after the loop of the swap's section."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    batches = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(10)]
    names: dict[str, Any] = {"torch": torch, "model": model, "batches": batches}
    exec("\n".join(lines), names)
    params = torch.cat([param.detach().flatten() for param in model.parameters()])
    return params, names["opt"].param_groups[0]["lr"]


def test_swap_changes_five_lines_and_no_result():
    diff, fuse = (block.splitlines() for block in blocks("diff"))
    assert sum(line[0] in "+-" for line in diff) == 5
    stock = [line[1:] for line in diff if line[0] != "+"]
    explicit = [line[1:] for line in diff if line[0] != "-"]
    where, added = (line[1:] for line in fuse)
    assert fuse[1][0] == "+" and explicit.count(where) == 1
    at = explicit.index(where) + 1
    before, lr_before = train(stock)
    for lines in (explicit, [*explicit[:at], added, *explicit[at:]]):
        after, lr_after = train(lines)
        torch.testing.assert_close(after, before)
        assert lr_after == pytest.approx(lr_before, abs=1e-14)


# -- names ---------------------------------------------------------------------------------------


def test_every_optimizer_is_named():
    assert [name for name in fused_sched.optim.__all__ if f"`{name}`" not in TEXT] == []


def test_every_engine_is_named():
    assert [name for name in available("cpu") if f"`{name}`" not in TEXT] == []


def test_dotted_names_resolve():
    names = set(re.findall(r"\bfused_sched((?:\.[A-Za-z]\w*)+)", TEXT))
    assert ".fuse" in names
    for name in names:
        assert reduce(getattr, name[1:].split("."), fused_sched) is not None


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


# -- length --------------------------------------------------------------------------------------


def prose(text: str) -> list[str]:
    """The words outside of code blocks, tables and comments."""
    for left_out in (r"^```.*?^```$", r"^\|[^\n]*$", r"<!--.*?-->"):
        text = re.sub(left_out, "", text, flags=re.DOTALL | re.MULTILINE)
    return text.split()


def test_words_of_prose_are_counted():
    text = "One `two` [three](x.md).\n<!-- no -->\n| no |\n```\nno\n```\n\n| no | no |\nfour\n"
    assert prose(text) == ["One", "`two`", "[three](x.md).", "four"]


def test_has_at_most_900_words():
    assert len(prose(TEXT)) <= 900


def test_has_one_benchmark_table_of_four_by_four():
    block = TEXT.split("<!-- bench:start -->")[1].split("<!-- bench:end -->")[0]
    _, ruler, *rows = (line for line in block.splitlines() if line.startswith("|"))
    assert len(rows) == 4 and ruler.count("---:") == 4
    assert block.count("![") == 1
