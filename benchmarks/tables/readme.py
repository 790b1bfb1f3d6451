"""The README's one table and its plot: four ways to step, four models, from a step's result."""

from dataclasses import replace

from benchmarks.result import Result
from benchmarks.tables import step
from benchmarks.tables.markdown import caption, markdown_table, unique
from benchmarks.tables.plots import Figure

MODELS = ("1000x1000", "mlp", "resnet50", "gpt2")
"""Many small tensors, a small net, and two whose tensors no cache holds."""

REPLAYED = "fused, graph"


def replayed(result: Result) -> bool:
    """Whether a CUDA graph of ours was measured."""
    return any(row.provider.endswith(REPLAYED) for row in result.rows)


def shown_names(result: Result) -> dict[str, str]:
    """Provider -> its name in the README: two of torch's, two of the engine that is the default."""
    ours = [row.provider for row in result.rows if row.provider.startswith(step.ENGINES)]
    engine = ours[0].partition(" ")[0]
    last = REPLAYED if replayed(result) else "fused"
    return {name: name for name in ("torch default", "torch fused")} | {
        f"{engine} {way}": f"fused_sched {way}" for way in ("explicit", last)
    }


def excerpt(result: Result) -> Result:
    """The rows that the README shows, in its order and under its names."""
    names = shown_names(result)
    found = {(row.model, row.provider): row for row in result.rows}
    rows = [
        replace(found[model, provider], provider=shown)
        for provider, shown in names.items()
        for model in MODELS
        if (model, provider) in found
    ]
    present = unique(row.model for row in rows)
    return replace(result, rows=rows, models={name: result.models[name] for name in present})


def summary(result: Result) -> str:
    """The table, what it shows and where that was measured."""
    shown = excerpt(result)
    found = {(row.model, row.provider): row for row in shown.rows}
    lines = [
        [name, *(step.timed(found.get((model, name))) for model in shown.models)]
        for name in unique(row.provider for row in shown.rows)
    ]
    header = ["", *(f"{name}<br>{_size(result, name)}" for name in shown.models)]
    what = (
        f"{step.task(result)}: time of `opt.step(); sched.step()`, in brackets its ratio to torch "
        "fused."
    )
    return f"{what}\n\n{markdown_table(header, lines)}\n{caption(result)}\n"


def _size(result: Result, model: str) -> str:
    """For example `161 tensors, 25.6 M`."""
    tensors, *_, params = result.models[model].split(", ", 2)
    count = int(params.removesuffix(" parameters").replace(",", ""))
    return f"{tensors}, {count / 1e6:.3g} M" if count >= 1e6 else f"{tensors}, {count / 1e3:.0f} k"


def draw(result: Result, figure: Figure) -> None:
    """The same as bars."""
    step.draw(excerpt(result), figure)
