"""The command: run the chosen rows, write the page."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import date
from pathlib import Path

from . import __doc__ as ABOUT
from .environments import ROOT, Unavailable, build_wheel, checked, run
from .page import Result, page
from .rows import ROWS, chosen
from .suite import Broken, try_row

PAGE = ROOT / "docs" / "versions.md"


def commit() -> str:
    """Short, with a + where files other than the page differ from it."""
    number = checked(("git", "rev-parse", "--short=7", "HEAD"), "no commit", cwd=ROOT).strip()
    compare = ("git", "diff", "--quiet", "HEAD", "--", ".", f":!docs/{PAGE.name}")
    return number + "+" * run(compare, cwd=ROOT).returncode


def kept(folder: Path) -> dict[str, Result]:
    """The last result of every row that this folder has seen."""
    files = (folder / f"{row.name}.json" for row in ROWS)
    read = (Result(**json.loads(file.read_text())) for file in files if file.exists())
    return {result.row: result for result in read}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen rows and write the page; 1 if one failed. One that is not here did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=ABOUT)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="in a row's name")
    parser.add_argument("--full", action="store_true", help="the whole suite")
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="for environments")
    options = parser.parse_args(arguments)
    rows, folder = chosen(options.only), options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        number = commit()
        wheel, builder = build_wheel(folder)
    except Unavailable as error:
        raise SystemExit(f"matrix: {error}") from None
    for row in rows:
        print(f"{row.name} ...", flush=True)
        result = Result(row.name, str(date.today()), number, builder=builder)
        result.form = "full" if options.full else "quick"
        try:
            try_row(row, folder, wheel, options.full, result)
        except (Unavailable, Broken) as error:
            result.note = str(error)
            result.failed = [str(error)] if isinstance(error, Broken) else []
        (folder / f"{row.name}.json").write_text(json.dumps(asdict(result), indent=1))
        PAGE.write_text(page(kept(folder)), encoding="utf-8")
        print(f"  {result.note or result.counts}", *result.failed, sep="\n    ", flush=True)
    return int(any(kept(folder)[row.name].failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
