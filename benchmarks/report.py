"""Results as tables and plots, and the README's copy of them.

    python -m benchmarks.report [--check] [RESULT.json ...]

draws each result's markdown table and PNG again from its CSV and JSON, and writes all of them (or
those named) into README.md between its markers. `--check` only compares the README with the
results that it names.
"""

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.result import RESULTS, ROOT, Result, suffixed
from benchmarks.tables import graph, host, scaling, schedule, step
from benchmarks.tables.plots import finish

README = ROOT / "README.md"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
SOURCE = re.compile(r"<!-- bench:source (\S+) -->")

QUESTIONS: dict[str, ModuleType] = {
    "step": step,
    "graph": graph,
    "schedule": schedule,
    "host": host,
    "scaling": scaling,
}
"""By the first word of a result's file name, in the README's order."""

README_TASKS = ("adamw-float32", "adamw-bfloat16", "sgd-float32")
"""Of the step's results; the others are in their files alone."""


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
    """Write the .md and, where matplotlib is installed, the .png; returns the former."""
    text = str(question_of(stem).full(result))
    suffixed(stem, ".md").write_text(text)
    if importlib.util.find_spec("matplotlib"):
        draw(result, stem)
    return text


def draw(result: Result, stem: Path) -> None:
    """Write the .png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    question_of(stem).draw(result, figure)
    finish(figure)
    # Without its version, the same result drawn again gives the same bytes.
    figure.savefig(suffixed(stem, ".png"), dpi=120, metadata={"Software": None})


# -- the README ----------------------------------------------------------------------------------


def readme_block(paths: Iterable[Path]) -> str:
    """The text between the markers: a note for each question, then its results."""
    paths = list(paths)
    sections = []
    for question in QUESTIONS.values():
        mine = [section(path, load(path)) for path in paths if question_of(path) is question]
        sections += [f"{question.NOTE}\n", *mine] if mine else []
    return "\n".join([START, *sections, "All numbers: `benchmarks/results/`.\n"]) + END


def section(path: Path, result: Result) -> str:
    """One result's part of the README, with its plot."""
    plot = path.with_suffix(".png")
    link = f"[Plot]({plot.relative_to(ROOT)}).\n" if plot.is_relative_to(ROOT) else ""
    return f"<!-- bench:source {path.name} -->\n{question_of(path).summary(result)}{link}"


def replace_block(readme: str, block: str) -> str:
    """The README with `block` in place of the old one."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"expected the markers {START} and {END} in the README")
    return before + block + after


def named_paths(readme: str, results: Path) -> list[Path]:
    """The result files that the README names."""
    return [results / name for name in SOURCE.findall(readme)]


def shown_paths(results: Path) -> list[Path]:
    """The results that belong in the README: of each, the whole run rather than the quick one."""
    found = [path for name in QUESTIONS for path in sorted(results.glob(f"{name}-*.json"))]
    whole = {path.stem for path in found}
    return [
        path
        for path in found
        if path.stem.removesuffix("-quick") not in whole - {path.stem} and in_readme(path)
    ]


def in_readme(path: Path) -> bool:
    """Whether a result is of a task that the README shows."""
    name = path.stem.removesuffix("-quick")
    return not name.startswith("step-") or name.endswith(README_TASKS)


def updated_readme(readme: str, paths: Sequence[Path]) -> str:
    """The README as it should read, given these result files."""
    return replace_block(readme, readme_block(paths))


def readme_agrees(readme: Path = README, results: Path = RESULTS) -> bool:
    """Whether the README's numbers are those of the result files it names."""
    text = readme.read_text()
    return updated_readme(text, named_paths(text, results)) == text


def main(arguments: list[str] | None = None) -> int:
    """Write tables, plots and the README's block, or check it (1 if it is stale)."""
    parser = argparse.ArgumentParser(description="Put benchmark results into the README.")
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of the benchmarks")
    parser.add_argument("--check", action="store_true", help="compare only")
    options = parser.parse_args(arguments)
    if options.check:
        return int(not readme_agrees())
    paths = [path.resolve() for path in options.results] or shown_paths(RESULTS)
    for path in paths:
        render(load(path), path.with_suffix(""))
    README.write_text(updated_readme(README.read_text(), paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
