"""Results as tables and plots, and the copies of them in README.md and docs/benchmarks.md.

    python -m benchmarks.report [--check] [RESULT.json ...]

draws each result's markdown table and PNG again from its CSV and JSON, and writes all of them (or
those named) into docs/benchmarks.md, and one table with its plot into README.md, between their
markers. `--check` only compares the two pages with the results that they name.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.result import RESULTS, ROOT, Result, suffixed
from benchmarks.tables import cases, graph, host, readme, scaling, schedule, step
from benchmarks.tables.plots import finish

README, PAGE = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
README_PLOT = RESULTS / "readme.png"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
SOURCE = re.compile(r"<!-- bench:source (\S+) -->")

QUESTIONS: dict[str, ModuleType] = {
    "step": step,
    "graph": graph,
    "schedule": schedule,
    "host": host,
    "scaling": scaling,
    "cases": cases,
}
"""By the first word of a result's file name, in the page's order.

Each has a class `Row`, a `TITLE`, a `NOTE` that explains its columns, `full`, `summary`, `draw`.
"""

PAGE_TASKS = ("adamw-float32", "adamw-bfloat16", "sgd-float32")
"""Of the step's results; the others are only in their files. The README has the first."""


def question_of(path: Path) -> ModuleType:
    """The tables of a result, by its file's name."""
    return QUESTIONS[path.name.partition("-")[0]]


def load(path: Path) -> Result:
    """A result from its JSON file."""
    return Result.load(path, question_of(path).Row)


def write(result: Result, stem: Path) -> str:
    """Write a result's files; returns its full table."""
    result.save(stem)
    return render(result, stem)


def render(result: Result, stem: Path) -> str:
    """Write the .md and the .png; returns the former."""
    text = str(question_of(stem).full(result))
    suffixed(stem, ".md").write_text(text)
    save_plot(question_of(stem), result, suffixed(stem, ".png"))
    return text


def save_plot(tables: ModuleType, result: Result, path: Path) -> None:
    """Write a .png, where matplotlib is installed."""
    if not importlib.util.find_spec("matplotlib"):
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    tables.draw(result, figure)
    finish(figure)
    # Without its version, the same result drawn again gives the same bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})


# -- which results are shown ---------------------------------------------------------------------


def shown_paths(results: Path) -> list[Path]:
    """The results that docs/benchmarks.md has: of each, the whole run rather than the quick one."""
    found = [path for name in QUESTIONS for path in sorted(results.glob(f"{name}-*.json"))]
    whole = {path.stem for path in found}
    return [
        path
        for path in found
        if path.stem.removesuffix("-quick") not in whole - {path.stem} and on_page(path)
    ]


def on_page(path: Path) -> bool:
    """Whether a result is of a task that docs/benchmarks.md shows."""
    name = path.stem.removesuffix("-quick")
    return not name.startswith("step-") or name.endswith(PAGE_TASKS)


def readme_path(paths: Iterable[Path]) -> Path:
    """The one of these results that the README shows: on a GPU, if there is one."""
    name = PAGE_TASKS[0]
    found = [path for path in paths if path.stem.startswith("step-") and name in path.stem]
    if not found:
        raise ValueError(f"the README shows a result step-...-{name}, and there is none")
    return max(found, key=lambda path: readme.replayed(load(path)))


def named_paths(text: str, results: Path) -> list[Path]:
    """The result files that a page names."""
    return [results / name for name in SOURCE.findall(text)]


# -- the pages -----------------------------------------------------------------------------------


def readme_block(paths: Sequence[Path]) -> str:
    """The README's table and plot."""
    path = readme_path(paths)
    plot = README_PLOT.relative_to(ROOT)
    image = f"![The table's ratios as bars]({plot})"
    return "\n".join([START, source(path), readme.summary(load(path)), image, END])


def page_block(paths: Sequence[Path]) -> str:
    """A section for each question: what its columns are, then its results."""
    sections = []
    for question in QUESTIONS.values():
        mine = [part(path) for path in paths if question_of(path) is question]
        sections += [f"## {question.TITLE}\n\n{question.NOTE.strip()}\n", *mine] if mine else []
    return "\n".join([START, *sections, END])


def part(path: Path) -> str:
    """One result of the page, with its plot."""
    plot = path.with_suffix(".png")
    image = f"\n![Plot]({to_plot(plot)})\n" if plot.is_relative_to(ROOT) else ""
    return f"{source(path)}\n{question_of(path).summary(load(path)).rstrip()}\n{image}"


def to_plot(plot: Path) -> str:
    """The page's link to a plot; docs/hooks.py puts the plots into the site."""
    return f"../{plot.relative_to(ROOT).as_posix()}"


def source(path: Path) -> str:
    """A comment that names a result file."""
    return f"<!-- bench:source {path.name} -->"


def updated(text: str, block: str) -> str:
    """A page with `block` in place of the old one."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"expected the markers {START} and {END}")
    return before + block + after


BLOCKS: dict[Path, Callable[[Sequence[Path]], str]] = {README: readme_block, PAGE: page_block}
"""Page -> what stands between its markers, given results."""


def agrees(page: Path, block: Callable[[Sequence[Path]], str], results: Path = RESULTS) -> bool:
    """Whether a page's numbers are those of the result files it names."""
    text = page.read_text()
    return updated(text, block(named_paths(text, results))) == text


def main(arguments: list[str] | None = None) -> int:
    """Write tables, plots and the pages' blocks, or check the pages (1 if one is stale)."""
    parser = argparse.ArgumentParser(description="Put benchmark results into the pages.")
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of the benchmarks")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args(arguments)
    if options.check:
        return int(not all(agrees(page, block) for page, block in BLOCKS.items()))
    paths = [path.resolve() for path in options.results] or shown_paths(RESULTS)
    for path in paths:
        render(load(path), path.with_suffix(""))
    save_plot(readme, load(readme_path(paths)), README_PLOT)
    for page, block in BLOCKS.items():
        page.write_text(updated(page.read_text(), block(paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
