"""The pages of docs/ are true: their code runs, their tables and names are the package's."""

from __future__ import annotations

import ast
import html
import importlib
import importlib.util
import inspect
import re
import shlex
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fused_sched
from fused_sched import cli
from fused_sched.engines import available
from fused_sched.swap import OPTIMIZERS
from tests.cases import SCHEDULERS, plain_step
from tests.gpu import capture as stand_in
from tests.interpreter import quick
from tests.twins import our_side, stock_side

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path for path in sorted(DOCS.rglob("*.md"))}
NOT_RUN = ("add_optimizer.md", "add_scheduler.md", "from_a_paper.md", "graphs.md")
"""The first three are run by tests/test_own_rules.py and test_contributing.py; the last below."""

SNIPPET = re.compile(r'^--8<-- "([^":]+)(?::(\w+))?"$', re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def included(match: re.Match) -> str:
    """A snippet's text, as pymdownx.snippets finds it."""
    text = (ROOT / match[1]).read_text(encoding="utf-8")
    if match[2] is None:
        return text
    start, end = (f"<!-- --8<-- [{where}:{match[2]}] -->\n" for where in ("start", "end"))
    assert text.count(start) == text.count(end) == 1, match[0]
    return text.split(start)[1].split(end)[0]


def text_of(page: str) -> str:
    return SNIPPET.sub(included, PAGES[page].read_text(encoding="utf-8"))


def fences(page: str, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(text_of(page)) if name == language]


def rows(page: str, heading: str) -> dict[str, str]:
    """First cell, without backticks -> last cell, of the table under a heading."""
    section = text_of(page).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    assert cells, heading
    return {row[0].strip().strip("`"): row[-1].strip() for row in cells}


# -- code ----------------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch):
    """As a user has it: no engine is forced."""
    monkeypatch.delenv("FUSED_SCHED_ENGINE", raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")


WITH_CODE = [page for page in PAGES if page not in NOT_RUN and fences(page, "python")]


def test_the_pages_with_code_are_run():
    assert WITH_CODE == ["index.md", "look_ahead.md", "run.md"]


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs_and_prints_what_is_shown(page, capsys, plain):
    """A page is one program; a ``text`` block shows what the ``python`` block before it prints."""
    names: dict[str, Any] = {}
    shown = 0
    blocks = FENCE.findall(text_of(page))
    for (language, code), (following, text) in zip(blocks, [*blocks[1:], ("", "")]):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            printed = capsys.readouterr().out
            if following == "text":
                assert printed == text
                shown += 1
    assert shown > 0


README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for text in (README, *map(text_of, PAGES))
    for _, code in FENCE.findall(text)
    for line in code.splitlines()
    if line.startswith("python -m fused_sched ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line):
    assert cli.parser().parse_args(shlex.split(line, comments=True)[3:]).run


def test_drawn_schedule_is_what_the_command_draws(capsys):
    (drawn,) = fences("command_line.md", "text")
    assert cli.main(["plot", "StepLR(30)"]) == 0
    assert capsys.readouterr().out == drawn


# -- the graphs' page ----------------------------------------------------------------------------


class Stream:
    """Stands for a CUDA stream."""

    def wait_stream(self, other: Any) -> None:
        pass


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    """What the page takes of torch.cuda, for CPU tensors: the tests' stand-in for a graph."""
    stand_ins = {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": nullcontext,
        "CUDAGraph": stand_in.RecordedGraph,
        "graph": stand_in.capture,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with fused_sched.use_engine("triton"), quick():
        yield


def on_cpu(code: str) -> str:
    """The page's code without its device, and with fewer replays."""
    return code.replace(".cuda()", "").replace(', device="cuda"', "").replace("9_000", "9")


def test_graphs_page_trains_with_a_live_schedule(graphs_on_cpu, capsys):
    recipe, explicit = fences("graphs.md", "python")
    names: dict[str, Any] = {}
    exec(on_cpu(recipe), names)
    lr = names["opt"].param_groups[0]["lr"]
    stock = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=3e-4)
    sched = torch.optim.lr_scheduler.OneCycleLR(stock, max_lr=1e-2, total_steps=10_000)
    for _ in range(3 + 9):
        stock.step()
        sched.step()
    assert lr == pytest.approx(stock.param_groups[0]["lr"], abs=1e-14)
    assert capsys.readouterr().out == f"{lr}\n"

    exec(on_cpu(explicit), names)
    before = names["model"].weight.detach().clone()
    for _ in range(4):
        names["graph"].replay()
    assert names["opt"].param_groups[0]["lr"] == pytest.approx(0.1 * 0.999**4)
    assert not torch.equal(names["model"].weight, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_page_runs_on_a_gpu(plain):
    names: dict[str, Any] = {}
    for code in fences("graphs.md", "python"):
        exec(compile(code, "graphs.md", "exec"), names)


# -- the swap table ------------------------------------------------------------------------------


def test_swap_table_names_every_optimizer():
    assert sorted(rows("swap.md", "Optimizers")) == sorted(c.__name__ for c in OPTIMIZERS.values())


def test_swap_table_names_every_optimizer_that_torch_lacks():
    theirs = {cls.__name__ for cls in OPTIMIZERS.values()} | {"FusedOptimizer"}
    named = set(rows("swap.md", "Optimizers that torch lacks"))
    assert named == set(fused_sched.optim.__all__) - theirs


def test_swap_table_names_every_scheduler():
    named = {name for name in rows("swap.md", "Schedulers") if "LRScheduler" not in name}
    assert named == set(fused_sched.lr_scheduler.__all__) - {"LRScheduler"}


def test_swap_table_promises_one_of_two_things():
    assert set(rows("swap.md", "Schedulers").values()) == {"bit for bit", "1e-12 of the peak"}


EXACT = [
    case
    for case in SCHEDULERS
    if case.advance is plain_step and rows("swap.md", "Schedulers")[case.name] == "bit for bit"
]


@pytest.mark.parametrize("case", EXACT, ids=[case.id for case in EXACT])
def test_schedules_said_to_be_bit_for_bit_are(case):
    """On the compiled engine, fused; tests/test_schedules.py has the promise of the others."""
    with fused_sched.use_engine("native"):
        ours, stock = our_side(case.build), stock_side(case.build)
        fused_sched.fuse(ours.opt, ours.scheduler, interval=1)
        ours.opt.found_inf = torch.zeros(1)  # a scaler is at work: lr is read from the device
        for _ in range(200):
            ours.step()
            stock.step()
            stock.scheduler.step()
            assert [group["lr"] for group in ours.opt.param_groups] == [
                group["lr"] for group in stock.opt.param_groups
            ]


def test_swap_table_names_dtypes_that_are_updated():
    (line,) = re.findall(r"^Param dtypes: (.*)$", text_of("swap.md"), re.MULTILINE)
    names = re.findall(r"(?:b?float|complex)\d+", line)
    assert len(names) == 6
    for name in names:
        param = torch.nn.Parameter(torch.ones(3, dtype=getattr(torch, name)))
        param.grad = torch.ones_like(param)
        fused_sched.optim.AdamW([param], lr=0.1).step()
        assert not torch.equal(param, torch.ones_like(param))


def test_swap_table_names_the_states():
    for name, cells in _states().items():
        params = [torch.nn.Parameter(torch.ones(2))]
        cls = getattr(fused_sched.optim, name)
        keys = [key for key in cls.states.values() if isinstance(key, str)]
        opt = cls(params, lr=0.1, **{key: 0.9 if key == "momentum" else True for key in keys})
        params[0].grad = torch.ones(2)
        opt.step()
        assert sorted(opt.state[params[0]]) == sorted(cells)


def _states() -> dict[str, list[str]]:
    section = text_of("swap.md").split("\n## Optimizers\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if "| `" in line]
    return {row[0].strip(" `"): re.findall(r"`(\w+)`", row[2]) for row in lines}


# -- the other tables ----------------------------------------------------------------------------


def test_engines_page_names_every_engine():
    assert sorted(re.findall(r"^\| `(\w+)` \|", text_of("engines.md"), re.M)) == sorted(
        available("cpu")
    )


def test_frameworks_page_names_every_recipe():
    text = text_of("frameworks.md")
    included = {Path(path).name for path, _ in SNIPPET.findall(PAGES["frameworks.md"].read_text())}
    named = included | set(re.findall(r"`(\w+\.py)`", PAGES["frameworks.md"].read_text()))
    recipes = {path.name for path in (ROOT / "examples" / "recipes").glob("*.py")}
    assert recipes <= named
    assert "tests/test_recipes.py" in text


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
    listed = re.findall(r"^\| `(.*?)` \|", text_of("errors.md"), re.MULTILINE)
    assert len(listed) > 5
    known = messages()
    assert [text for text in listed if text.removesuffix("…").strip() not in known] == []


# -- names and links -----------------------------------------------------------------------------

EVERYTHING = "\n".join(text_of(page) for page in PAGES)


def test_dotted_names_resolve():
    names = set(re.findall(r"\bfused_sched((?:\.[A-Za-z]\w*)+)\(", EVERYTHING))
    assert {".fuse", ".explain", ".use_engine"} <= names
    for name in names:
        assert reduce(getattr, name[1:].split("."), fused_sched) is not None


def test_arguments_of_fuse_exist():
    calls = "".join(re.findall(r"\bfuse\([^()]*(?:\([^()]*\))?[^()]*\)", EVERYTHING))
    arguments = set(re.findall(r"(\w+)=", calls))
    assert arguments == {"interval", "advance_on_skip"}
    assert arguments < set(inspect.signature(fused_sched.fuse).parameters)


def test_files_that_are_named_exist():
    named = set(re.findall(r"`((?:fused_sched|tests|examples|csrc|docs)/[\w/.]+)`", EVERYTHING))
    made = {"fused_sched/optim/power_sign.py", "fused_sched/lr_scheduler/inverse_sqrt.py"}
    assert sorted(path for path in named - made if not (ROOT / path).exists()) == []


def slug(heading: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {slug(heading) for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """make docs checks them too, and those of the API pages."""
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (PAGES[page].parent / path) if path else PAGES[page]
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    listed = re.findall(r": ([\w/]+\.md)$", nav.split("\n\n")[0], re.MULTILINE)
    assert sorted(listed) == sorted(PAGES)


API = re.findall(r"^::: ([\w.]+)$", EVERYTHING, re.MULTILINE)


@pytest.mark.parametrize("path", API)
def test_api_pages_name_what_exists_and_has_a_docstring(path):
    module, _, name = path.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(module), name))


def test_api_pages_name_everything_public():
    shown = {path.rpartition(".")[2] for path in API}
    classes = {*fused_sched.optim.__all__, *fused_sched.lr_scheduler.__all__} - {"LRScheduler"}
    modules = {"__version__", "engines", "lr_scheduler", "optim"}
    assert (classes | set(fused_sched.__all__)) - modules <= shown


# -- the docstrings as Markdown ------------------------------------------------------------------


def tool(name: str) -> ModuleType:
    """A module of docs/, which the build of the site loads."""
    for package in ("griffe", "mkdocs", "latex2mathml"):
        pytest.importorskip(package, reason="a tool of make docs")
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_lose_their_restructured_text():
    module = tool("rst_in_docstrings")
    for path in API:
        source, _, name = path.rpartition(".")
        text = module.as_markdown(inspect.getdoc(getattr(importlib.import_module(source), name)))
        assert not re.search(r"\.\. \w+::|:\w+:`", text)
    text = module.as_markdown("One.\n\n.. math::\n    a &= b \\\\\n    c &= d\n\nTwo :math:`x`.")
    aligned = "\\begin{align*}\na &= b \\\\\nc &= d\n\\end{align*}"
    assert text == f"One.\n\n$$\n{aligned}\n$$\n\nTwo $x$."


# -- the site ------------------------------------------------------------------------------------


def test_every_equation_becomes_mathml():
    hooks, docstrings = tool("hooks"), tool("rst_in_docstrings")
    equations = 0
    for path in API:
        source, _, name = path.rpartition(".")
        text = docstrings.as_markdown(
            inspect.getdoc(getattr(importlib.import_module(source), name))
        )
        for latex in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL):
            page = f'<div class="arithmatex">\\[{html.escape(latex)}\\]</div>'
            assert hooks.on_page_content(page).startswith("<math")
            equations += 1
    assert equations >= 10
    inline = hooks.on_page_content('so <span class="arithmatex">\\(x &lt; 1\\)</span>.')
    assert inline.startswith("so <math") and inline.endswith("</math>.")


def test_latex_that_cannot_be_shown_fails_the_build():
    page = r'<span class="arithmatex">\(\nosuchcommand{x}\)</span>'
    with pytest.raises(Exception, match="cannot read all of"):
        tool("hooks").on_page_content(page)


FETCHING = (
    '<script src="https://cdn.example/mathjax.js">',
    "<img alt='x' src='//example/x.png'>",
    '<link href="https://fonts.example/css" rel="stylesheet">',
    "body { background: url(https://example/x.png) }",
    '@import "https://example/x.css";',
)
FOLLOWED = (
    '<a href="https://example.org">',
    '<script src="assets/bundle.js">',
    '<link rel="canonical" href="https://example.org">',
    "https://example.org",
)


def test_what_a_page_would_fetch_is_found(tmp_path):
    hooks = tool("hooks")
    assert [len(hooks.fetched(text)) for text in FETCHING] == [1] * len(FETCHING)
    assert hooks.fetched("\n".join(FOLLOWED)) == []
    hooks.on_post_build({"site_dir": tmp_path})
    (tmp_path / "page.html").write_text(FETCHING[0])
    with pytest.raises(Exception, match="page.html: .*cdn.example"):
        hooks.on_post_build({"site_dir": tmp_path})


def test_site_asks_for_no_font_and_no_script_of_others():
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in settings and "//" not in settings


CLASSES = [
    *OPTIMIZERS.values(),
    *(
        getattr(fused_sched.lr_scheduler, name)
        for name in fused_sched.lr_scheduler.__all__
        if name != "LRScheduler"
    ),
]


@pytest.mark.parametrize("ours", CLASSES, ids=lambda ours: ours.__name__)
def test_constructors_show_torchs_arguments_and_then_our_own(ours):
    stock = next(base for base in ours.__mro__ if base.__module__.startswith("torch.optim"))
    shown = inspect.signature(ours).parameters
    expected = inspect.signature(stock).parameters
    assert list(shown)[: len(expected)] == list(expected)
    assert [shown[name].default for name in expected] == [p.default for p in expected.values()]
    assert {*shown} - {*expected} <= {"horizon", "hyper", *getattr(ours, "optional", ())}


def test_a_class_of_ones_own_shows_its_own_arguments():
    class Mine(fused_sched.lr_scheduler.StepLR):
        def __init__(self, optimizer, width):
            super().__init__(optimizer, step_size=width)

    class MySGD(fused_sched.optim.SGD):
        def __init__(self, params, speed):
            super().__init__(params, lr=speed)

    assert list(inspect.signature(Mine).parameters) == ["optimizer", "width"]
    assert list(inspect.signature(MySGD).parameters) == ["params", "speed"]


def test_constructors_are_shown_in_the_site():
    signatures = tool("signatures")
    assert {cls.__name__ for cls in CLASSES} <= {
        path.rpartition(".")[2] for path in signatures.CLASSES
    }
    (_, lr, *_) = signatures.parameters_of(fused_sched.optim.SGD)
    assert (lr.name, lr.default) == ("lr", "0.001")
    (closure,) = signatures.parameters_of(signatures.STEP)[-1:]
    assert (closure.name, closure.default) == ("closure", "None")


def test_every_scheduler_has_a_case():
    assert {case.name for case in SCHEDULERS} == set(fused_sched.lr_scheduler.__all__) - {
        "LRScheduler"
    }
