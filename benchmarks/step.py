"""How long does `opt.step(); sched.step()` take, beside torch's ways to do the same?

    python -m benchmarks.step [--quick] [--optimizer NAME] [--dtype NAME] [--out DIR]
        [--models NAME ...] [--providers NAME ...]

Writes a CSV, a JSON (machine, versions, commit), a markdown table and a PNG, named after the
device; with `--quick` few rounds, and names that say so.
"""

import argparse
import gc
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.limit import limit_runner
from benchmarks.measure import (
    Effort,
    Runner,
    Spread,
    copy_rate,
    copy_runner,
    count_launches,
    device_name,
    free_memory,
    interleave,
    record_here,
)
from benchmarks.models import MODELS, Model
from benchmarks.providers import (
    Provider,
    Task,
    Workload,
    all_providers,
    bytes_needed,
    left_out,
)
from benchmarks.report import RESULTS, Result, Row, full_report

FULL = Effort(rounds=25, batch_seconds=0.02)
QUICK = Effort(rounds=5, batch_seconds=0.01)
DEFAULT, FUSED, COPY, LIMIT = "torch default", "torch fused", "copy", "memory limit"


def measure_model(
    model: Model, task: Task, providers: Sequence[Provider], device: torch.device, effort: Effort
) -> list[Row]:
    """A row for each provider, all measured by turns on the same parameters."""
    workload = Workload.make(model, device, task)
    runners = {provider.name: provider.build(workload) for provider in providers}
    samples = interleave({**runners, **limits(workload)}, device, effort)
    return [
        make_row(model, task, name, samples, count_launches(runner, device))
        for name, runner in runners.items()
    ]


def limits(workload: Workload) -> dict[str, Runner]:
    """What memory allows, in the same rounds: a copy; on a CPU also a loop over the same bytes."""
    runners = {COPY: copy_runner(workload.device)}
    if workload.device.type == "cpu":
        runners[LIMIT] = limit_runner(workload)
    return runners


def make_row(
    model: Model, task: Task, name: str, samples: Mapping[str, list[float]], launches: int | None
) -> Row:
    """Summarise one provider's samples; sample i of all providers is of round i."""
    time = Spread.of([seconds * 1e6 for seconds in samples[name]])
    to_default = Spread.of(ratios(samples[name], samples[DEFAULT]))
    to_fused = Spread.of(ratios(samples[name], samples[FUSED]))
    to_limit = Spread.of(ratios(samples[name], samples[LIMIT])) if LIMIT in samples else None
    moved = task.bytes_per_param * model.num_params
    return Row(
        model=model.name,
        provider=name,
        us=round(time.median, 2),
        us_low=round(time.low, 2),
        us_high=round(time.high, 2),
        to_default=round(to_default.median, 4),
        to_default_low=round(to_default.low, 4),
        to_default_high=round(to_default.high, 4),
        to_fused=round(to_fused.median, 4),
        to_fused_low=round(to_fused.low, 4),
        to_fused_high=round(to_fused.high, 4),
        bytes=moved,
        gb_per_s=round(moved / time.median / 1e3, 3),
        to_limit=None if to_limit is None else round(to_limit.median, 4),
        copy_gb_per_s=round(copy_rate(Spread.of(samples[COPY]).median), 3),
        launches=launches,
    )


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Round by round."""
    return [ours / theirs for ours, theirs in zip(seconds, baseline, strict=True)]


def release(device: torch.device) -> None:
    """Give a finished model's memory back: schedulers and optimizers are reference cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def too_big(model: Model, task: Task, providers: int, device: torch.device) -> str | None:
    """Why the model does not fit in memory, if so."""
    needed, free = bytes_needed(model, task, providers), free_memory(device)
    if free is None or needed < free:
        return None
    return f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"


def measure_all(
    models: Sequence[Model],
    task: Task,
    providers: Sequence[Provider],
    device: torch.device,
    effort: Effort,
    stem: Path,
) -> Result:
    """Measure model after model; one that does not fit is left out, with the reason.

    The files are written after each model: a run that is stopped leaves what it has.
    """
    trained = {"optimizer": task.optimizer, "dtype": task.dtype_name}
    result = Result(asdict(record_here(device)) | trained, {}, left_out(device), [])
    for model in models:
        print(f"{model.name}: {model.describe()}", file=sys.stderr, flush=True)
        reason = too_big(model, task, len(providers), device)
        if reason:
            result.left_out[model.name] = reason
            print(f"    left out: {reason}", file=sys.stderr)
            continue
        result.rows.extend(measure_model(model, task, providers, device, effort))
        result.models[model.name] = model.describe()
        result.save(stem)
        release(device)
    return result


def draw(result: Result, path: Path) -> None:
    """Time over torch fused's, model by model, with the 20th and 80th percentile."""
    providers = list(dict.fromkeys(row.provider for row in result.rows))
    models = list(result.models)
    spacing = 0.8 / len(providers)
    figure = Figure(figsize=(9, 1 + 0.16 * len(models) * len(providers)), layout="constrained")
    axes = figure.subplots()
    for index, provider in enumerate(providers):
        color = colormaps["tab20"](index)
        rows = [row for row in result.rows if row.provider == provider]
        heights = [models.index(row.model) + (index + 0.5) * spacing - 0.4 for row in rows]
        middle = [row.to_fused for row in rows]
        below = [row.to_fused - row.to_fused_low for row in rows]
        above = [row.to_fused_high - row.to_fused for row in rows]
        axes.errorbar(
            middle,
            heights,
            xerr=(below, above),
            fmt="o" if provider.startswith("torch") else "D",
            color=color,
            markerfacecolor="none" if provider.endswith("graph") else color,
            markersize=5,
            label=provider,
        )
    axes.axvline(1.0, color="black", linewidth=1)
    for boundary in range(1, len(models)):
        axes.axhline(boundary - 0.5, color="0.85", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(models)), models)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlabel("time of opt.step(); sched.step() over torch fused's (left is faster)")
    axes.set_title(result.record["device"])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


def file_stem(device: torch.device, task: Task, quick: bool) -> str:
    """For example `step-nvidia-h200-adamw-float32` or `step-nvidia-h200-sgd-float32-quick`."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return f"step-{slug}-{task.optimizer.lower()}-{task.dtype_name}{'-quick' * quick}"


def chosen_providers(
    names: Sequence[str] | None, device: torch.device, task: Task
) -> list[Provider]:
    """Those named, or all; always with the two that ratios refer to."""
    providers = all_providers(device, task)
    unknown = set(names or ()) - set(providers)
    if unknown:
        raise SystemExit(f"no such provider: {sorted(unknown)}; there are {list(providers)}")
    wanted = {DEFAULT, FUSED, *(providers if names is None else names)}
    return [provider for name, provider in providers.items() if name in wanted]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure opt.step(); sched.step().")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--optimizer", choices=("AdamW", "Adam", "SGD"), default="AdamW")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="default: all")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default_device)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table."""
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    task = Task(options.optimizer, getattr(torch, options.dtype))
    providers = chosen_providers(options.providers, device, task)
    models = [MODELS[name] for name in options.models]
    stem = options.out / file_stem(device, task, options.quick)
    effort = QUICK if options.quick else FULL
    result = measure_all(models, task, providers, device, effort, stem)
    draw(result, options.out / f"{stem.name}.png")
    print(full_report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
