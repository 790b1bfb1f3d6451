"""How long does `opt.step(); sched.step()` take, beside others' ways to do the same?

    python -m benchmarks.step [--quick] [--optimizer NAME] [--dtype NAME] [--out DIR]
        [--models NAME ...] [--providers NAME ...]

Writes a CSV, a JSON (machine, versions, commit), a markdown table and a PNG, named after the
device; with `--quick` few rounds and the smaller models, and names that say so.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.all_providers import DEFAULT, baseline, chosen_providers, left_out
from benchmarks.command import new_parser, stem_of
from benchmarks.limit import limit_runner
from benchmarks.measure import (
    COPY_BYTES,
    Effort,
    Runner,
    Spread,
    copy_rate,
    copy_runner,
    count_launches,
    interleave,
    ratios,
    release,
)
from benchmarks.models import MODELS, QUICK_MODELS, Model
from benchmarks.providers import Provider
from benchmarks.record import free_memory, record_here
from benchmarks.report import write
from benchmarks.result import Result
from benchmarks.tables.step import Row
from benchmarks.workload import DTYPES, RULES, Task, Workload

FULL = Effort(rounds=25, batch_seconds=0.02)
QUICK = Effort(rounds=5, batch_seconds=0.01)
COPY, LIMIT = "copy", "memory limit"


def measure_model(
    model: Model, task: Task, providers: Sequence[Provider], device: torch.device, effort: Effort
) -> list[Row]:
    """A row for each provider, all measured by turns on the same parameters."""
    workload = Workload.make(model, device, task)
    runners = {provider.name: provider.build(workload) for provider in providers}
    samples = interleave({**runners, **limits(workload)}, device, effort)
    return [
        make_row(workload, name, samples, count_launches(runner, device))
        for name, runner in runners.items()
    ]


def limits(workload: Workload) -> dict[str, Runner]:
    """What memory allows, in the same rounds: a copy; on a CPU also a loop over the same bytes."""
    runners = {COPY: copy_runner(workload.device)}
    if workload.device.type == "cpu":
        runners[LIMIT] = limit_runner(workload)
    return runners


def make_row(
    workload: Workload, name: str, samples: Mapping[str, list[float]], launches: int | None
) -> Row:
    """Summarise one provider's samples; sample i of all providers is of round i."""
    time = Spread.of([seconds * 1e6 for seconds in samples[name]])
    moved = workload.task.bytes_moved(workload.model)
    copied = copy_rate(Spread.of(samples[COPY]).median, workload.device)
    to_limit = Spread.of(ratios(samples[name], samples[LIMIT])).median if LIMIT in samples else None
    return Row(
        model=workload.model.name,
        provider=name,
        **time.fields("us", 2),
        **ratio_fields("to_default", samples[name], samples.get(DEFAULT)),
        **ratio_fields("to_fused", samples[name], samples[baseline(workload.task)]),
        bytes=moved,
        gb_per_s=round(moved / time.median / 1e3, 3),
        to_limit=None if to_limit is None else round(to_limit, 4),
        copy_gb_per_s=round(copied, 3),
        launches=launches,
    )


def ratio_fields(
    name: str, seconds: Sequence[float], baseline: Sequence[float] | None
) -> dict[str, Any]:
    """The ratio's three fields of a row; None without a baseline."""
    if baseline is None:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return Spread.of(ratios(seconds, baseline)).fields(name, 4)


# -- what fits into memory -----------------------------------------------------------------------


def how_many_fit(model: Model, task: Task, device: torch.device) -> int | None:
    """Optimizers whose states fit into memory at once, or None where nobody tells how much is free.

    Beside them there are params, gradients, two temporaries of a foreach step and the copy's two
    arrays, and on a CPU those of the loop that measures the limit. A tenth is left alone.
    """
    free = free_memory(device)
    if free is None:
        return None
    arrays = 4 + (2 + task.state_tensors) * (device.type == "cpu")
    unit, copied = task.param_bytes(model), 2 * COPY_BYTES[device.type]
    return int((0.9 * free - copied - arrays * unit) / (task.state_tensors * unit))


def batches(providers: Sequence[Provider], at_once: int | None, base: str) -> list[list[Provider]]:
    """Providers that are measured together; each batch has `base`, which all compare to."""
    if at_once is None or len(providers) <= at_once:
        return [list(providers)]
    others = [provider for provider in providers if provider.name != base]
    first = [provider for provider in providers if provider.name == base]
    size = at_once - 1
    return [[*first, *others[i : i + size]] for i in range(0, len(others), size)]


def measure_batches(
    model: Model, task: Task, providers: Sequence[Provider], device: torch.device, effort: Effort
) -> list[Row]:
    """The rows of all providers, in their order; empty where not even two fit into memory."""
    at_once = how_many_fit(model, task, device)
    if at_once is not None and at_once < 2:
        return []
    rows: dict[str, Row] = {}
    for batch in batches(providers, at_once, baseline(task)):
        for row in measure_model(model, task, batch, device, effort):
            rows.setdefault(row.provider, row)
        release(device)
    return [rows[provider.name] for provider in providers]


def measure_all(
    models: Sequence[Model],
    task: Task,
    providers: Sequence[Provider],
    device: torch.device,
    effort: Effort,
    stem: Path,
    quick: bool,
) -> Result:
    """Measure model after model; one that does not fit is left out, with the reason.

    The files are written after each model: a run that is stopped leaves what it has.
    """
    trained = {"optimizer": task.optimizer, "dtype": task.dtype}
    result = Result(asdict(record_here(device)) | trained, {}, left_out(device, task, quick), [])
    for model in models:
        print(f"{model.name}: {model.describe()}", file=sys.stderr, flush=True)
        serving = [provider for provider in providers if provider.serves(len(model.shapes))]
        absent = {one.name: one.max_tensors for one in providers if one not in serving}
        for name, limit in absent.items():
            result.left_out[f"{name} on {model.name}"] = f"has more than {limit} tensors"
        rows = measure_batches(model, task, serving, device, effort)
        if rows:
            result.rows.extend(rows)
            result.models[model.name] = model.describe()
            write(result, stem)
        else:
            size = task.param_bytes(model) / 1e9
            result.left_out[model.name] = f"two optimizers of {size:.0f} GB params exceed memory"
    return result


# -- the command ---------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("Measure opt.step(); sched.step().")
    parser.add_argument("--optimizer", choices=RULES, default="AdamW")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all, or quick ones")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="default: all")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table."""
    options = parse_arguments(arguments)
    device, task = torch.device(options.device), Task(options.optimizer, options.dtype)
    providers = chosen_providers(options.providers, device, task, options.quick)
    models = options.models or (QUICK_MODELS if options.quick else MODELS)
    stem = stem_of("step", options, task.optimizer, task.dtype)
    effort, chosen = QUICK if options.quick else FULL, [MODELS[name] for name in models]
    result = measure_all(chosen, task, providers, device, effort, stem, options.quick)
    print(write(result, stem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
