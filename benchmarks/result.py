"""Results as files: the rows in a CSV, the rest in a JSON beside it."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Result:
    """The rows of one run (dataclasses of one class), and where and with what it ran.

    `models` describes what was measured, by the name that the rows have for it; `left_out` says
    why something was not.
    """

    record: dict[str, Any]
    models: dict[str, str]
    left_out: dict[str, str]
    rows: list[Any]

    def save(self, stem: Path) -> None:
        """Write `stem`.csv (the rows) and .json (the rest)."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        with suffixed(stem, ".csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(self.rows[0])])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
        rest = {"record": self.record, "models": self.models, "left_out": self.left_out}
        suffixed(stem, ".json").write_text(json.dumps(rest, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path, row_class: Any) -> "Result":
        """Read what `save` wrote; `path` is the .json."""
        with path.with_suffix(".csv").open(newline="") as file:
            rows = [parse_row(cells, row_class) for cells in csv.DictReader(file)]
        return cls(**json.loads(path.read_text()), rows=rows)


def suffixed(stem: Path, suffix: str) -> Path:
    """`stem` with a suffix; versions and sizes in its name may hold dots."""
    return stem.with_name(stem.name + suffix)


def parse_row(cells: Mapping[str, str], row_class: Any) -> Any:
    """A row from the strings of a CSV line; an empty cell is None."""
    return row_class(
        **{field.name: parse_cell(cells[field.name], field.type) for field in fields(row_class)}
    )


def parse_cell(cell: str, kind: Any) -> Any:
    """A value of a field of type `kind`: str, int, float, or one of these or None."""
    kinds = get_args(kind) or (kind,)
    if not cell and type(None) in kinds:
        return None
    return kinds[0](cell)


def file_stem(question: str, device: str, *details: str, quick: bool) -> str:
    """For example `step-nvidia-h200-adamw-float32` or `host-nvidia-h200-quick`."""
    words = [question, device, *details, *["quick"] * quick]
    return "-".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)
