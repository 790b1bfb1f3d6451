"""Pieces of markdown that every question's tables share."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.result import Result


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose others are numbers."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def format_time(us: float) -> str:
    """Three digits: 12.3 us, 1.23 ms, 1.23 s."""
    for unit, size in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if abs(us) < 999.5 * size or unit == "s":
            break
    digits = f"{us / size:#.3g}".rstrip(".") if abs(us) >= 5e-4 else "0"
    return f"{digits} {unit}"


RESOLUTION = 0.1
"""Microseconds below which a difference of two measured times means nothing."""


def format_difference(us: float) -> str:
    """A difference of times, or a term of a fit: no digits of noise, and nothing below zero."""
    return f"< {RESOLUTION} us" if us < RESOLUTION else format_time(us)


def format_span(low: float, high: float) -> str:
    """Two times."""
    return f"{format_time(low)} ... {format_time(high)}"


def optional(value: Any, spec: str = "") -> str:
    """A value as `format` writes it, nothing for None."""
    return "" if value is None else format(value, spec)


def caption(result: Result) -> str:
    """Where and with what the result was measured, in one line."""
    record = result.record
    triton = f", triton {record['triton']}" if record["triton"] else ""
    return (
        f"{record['device']}; torch {record['torch']}{triton}, Python {record['python']}, "
        f"{record['threads']} CPU threads, load average {record['load_average']}; "
        f"commit {record['commit']}, {record['date']}."
    )


def document(title: str, result: Result, text: str, table: str) -> str:
    """All of a result: title, caption, text, what was measured and what was not, the table."""
    models = "".join(f"* {name}: {what}\n" for name, what in result.models.items())
    absent = "".join(f"* not measured: {name}: {why}\n" for name, why in result.left_out.items())
    lists = f"{models}{absent}\n" if models or absent else ""
    return f"# {title}\n\n{caption(result)}\n\n{text}\n\n{lists}{table}"


def unique(values: Iterable[Any]) -> list[Any]:
    """Each once, in the order of its first."""
    return list(dict.fromkeys(values))
