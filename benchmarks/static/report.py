"""The report as markdown, from its data."""

from typing import Any

from benchmarks.static.targets import GPUS
from benchmarks.tables.markdown import markdown_table

INTRODUCTION = (
    "What the compiler made of the kernels; nothing here has run. Registers and local memory "
    "(bytes) are a lane's, of the whole kernel with its schedule program; occupancy is the share "
    "of warps that these registers leave room for; in flight are KB of loads on a multiprocessor, "
    "of so many warps at the hot loop. The rest is of the hot loop, the update of "
    "whole vectors: widths in bits of its widest and narrowest global access, float64 "
    "instructions, instructions and bytes per element. Instructions are counted as they stand, "
    "both sides of each branch. A kernel of mixed dtypes has a loop for each."
)
ROOFLINE = (
    "An estimate, from datasheets: milliseconds per 10^9 elements that the bytes take at the full "
    "bandwidth, and that the hot loop's instructions take at full issue. A step takes at least the "
    "longer. Latency covered is that of memory, in us, by the loads of all resident warps' present "
    "iterations."
)


def text(data: dict[str, Any]) -> str:
    """The whole report."""
    record = data["record"]
    reloads = ", ".join(data["reloads"]) or "none"
    return (
        "# The compiled kernels\n\n"
        f"triton {record['triton']}; commit {record['commit']}.\n\n{INTRODUCTION}\n\n"
        f"{kernels(data['figures'])}\n## Roofline\n\n{ROOFLINE}\n\n{hardware()}\n"
        f"{rooflines(data['figures'])}\n"
        f"Scalars that a program loads after it stored them: {reloads}.\n"
    )


def kernels(figures: list[dict[str, Any]]) -> str:
    """A line for each kernel and architecture."""
    header = (
        *("kernel", "dtypes", "target", "registers", "occupancy", "local", "in flight"),
        *("widest", "narrowest", "float64", "instructions", "bytes"),
    )
    return markdown_table(header, map(kernel_cells, figures), texts=3)


def kernel_cells(row: dict[str, Any]) -> list[str]:
    """A line of the first table."""
    hot = row["hot"] or {}
    names = ("widest", "narrowest", "float64", "instructions", "bytes")
    return [
        *(row["kernel"], row["kinds"], row["target"]),
        *(str(row["registers"]), f"{100 * row['occupancy']:.0f} %", str(row["local"])),
        f"{row['in_flight'] / 1024:g}" if row["in_flight"] else "",
        *(f"{hot[name]:g}" if hot else "" for name in names),
    ]


def hardware() -> str:
    """What the estimates assume."""
    lines = [
        [gpu.name, gpu.target, f"{gpu.gb_per_s:g}", str(gpu.multiprocessors), f"{gpu.mhz:g}"]
        for gpu in GPUS
    ]
    return markdown_table(("GPU", "target", "GB/s", "multiprocessors", "MHz"), lines, texts=2)


def rooflines(figures: list[dict[str, Any]]) -> str:
    """A line for each kernel and GPU."""
    header = ("kernel", "dtypes", "GPU", "memory, ms", "issue, ms", "latency covered, us")
    lines = [
        [
            *(row["kernel"], row["kinds"], one["gpu"]),
            *(f"{one['memory']:.2f}", f"{one['issue']:.2f}", f"{one['covered_us']:.1f}"),
        ]
        for row in figures
        for one in row["estimates"]
    ]
    return markdown_table(header, lines, texts=3)
