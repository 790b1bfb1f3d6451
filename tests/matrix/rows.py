"""The environments, and what runs in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Exact numbers of an environment; of Python the newest patch at hand."""

    python: str
    torch: str
    triton: str
    numpy: str = "2.3.5"

    @property
    def name(self) -> str:
        """Of the environment's folder, and what ONLY looks at."""
        return f"python{self.python}-torch{self.torch}-triton{self.triton}"


# Triton is the one that each torch asks for. Triton 3.6's interpreter wants numpy before 2.4, and
# Python 3.10 has none after 2.2.6.
ROWS = (
    Row("3.10", "2.11.0", "3.6.0", numpy="2.2.6"),
    Row("3.12", "2.11.0", "3.6.0"),
    Row("3.11", "2.12.1", "3.7.1"),
    Row("3.11", "2.13.0", "3.7.1"),
    Row("3.10", "2.14.1", "3.8.0", numpy="2.2.6"),
    Row("3.12", "2.14.1", "3.8.0"),
    Row("3.13", "2.15.0", "3.9.0"),
    Row("3.14", "2.15.0", "3.9.0", numpy="2.4.1"),
)

QUICK = (
    "tests/test_versions.py",
    "tests/test_errors.py",
    "tests/test_optimizers.py",
    "tests/test_schedules.py",
    "tests/test_protocol.py",
    "tests/test_state.py",
    "tests/test_cached.py",
    "tests/test_calls_edges.py",
    "tests/test_kernels.py",
    "tests/test_compile.py",
    "tests/test_cli_plot.py",
)
"""Torch's own messages and structures, every engine's results, torch.compile."""

LONG = "tests/test_schedules.py::test_schedule_equals_stock_at_each_step[triton"
"""The quick form leaves these out: hundreds of steps each, in Triton's interpreter."""


def chosen(words: Sequence[str]) -> list[Row]:
    """The rows whose name holds one of the words; all without a word."""
    for word in words:
        if not any(word in row.name for row in ROWS):
            names = "\n  ".join(row.name for row in ROWS)
            raise SystemExit(f"matrix: no row's name holds {word!r}; the rows:\n  {names}")
    return [row for row in ROWS if not words or any(word in row.name for word in words)]
