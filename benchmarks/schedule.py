"""What does a schedule cost: its `scheduler.step()` alone, and inside the optimizer's launch?

    python -m benchmarks.schedule [--quick] [--out DIR]

Alone: only `scheduler.step()` is called, on an optimizer that has stepped. Inside: a full step
with the schedule, less the same provider's step without one in the same round. Both for 1, 28 and
465 param groups, each of one tensor of 64 elements.
"""

import gc
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

import torch

import fused_sched
from benchmarks.all_providers import engines
from benchmarks.command import new_parser, stem_of
from benchmarks.measure import Effort, Runner, Spread, interleave, ratios
from benchmarks.models import Model, groups_of_one
from benchmarks.providers import Provider, Schedule, make_ours, make_torch
from benchmarks.record import record_here
from benchmarks.report import write
from benchmarks.result import Result
from benchmarks.schedules import METRIC, QUICK_SCHEDULES, SCHEDULES
from benchmarks.tables.schedule import ALONE, INSIDE, SHOWN, Row
from benchmarks.workload import Task, Workload

GROUPS = (1, 28, 465)  # one; layer-wise decay of a ViT; rf-detr#1409
FULL = Effort(rounds=25, batch_seconds=0.01)
QUICK = Effort(rounds=5, batch_seconds=0.002)
TASK = Task("AdamW")
TORCH, TENSOR_LR, TORCH_FUSED = "torch", "torch, tensor lr", "torch fused"


def workload_of(groups: int, device: torch.device) -> Workload:
    """So many groups of one small tensor."""
    return Workload.make(Model(str(groups), groups_of_one([(64,)] * groups)), device, TASK)


def our_engines(device: torch.device) -> list[str]:
    """Those that are measured."""
    return [name for name, why in engines(device).items() if why is None]


@contextmanager
def quiet_construction() -> Iterator[None]:
    """SequentialLR steps its children before any optimizer step, of which torch itself warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# -- scheduler.step() alone ----------------------------------------------------------------------


def alone(workload: Workload, name: str) -> dict[str, Runner]:
    """`scheduler.step()` of each provider."""
    runners = {TORCH: torch_alone(workload, name, tensor_lr=False)}
    runners[TENSOR_LR] = torch_alone(workload, name, tensor_lr=True)
    for engine in our_engines(workload.device):
        runners[engine] = ours_alone(workload, name, engine)
    return runners


def torch_alone(workload: Workload, name: str, tensor_lr: bool) -> Runner:
    """Stock torch's, with a float or with the tensor that a captured step needs."""
    opt = TASK.make(torch.optim, workload.param_groups(tensor_lr), fused=True)
    return scheduler_runner(opt, SCHEDULES[name](torch.optim.lr_scheduler, opt), name)


def ours_alone(workload: Workload, name: str, engine: str) -> Runner:
    """Ours in explicit mode."""
    context = partial(fused_sched.use_engine, engine)
    with context():
        opt = TASK.make(fused_sched.optim, workload.param_groups())
        sched = SCHEDULES[name](fused_sched.lr_scheduler, opt)
        runner = scheduler_runner(opt, sched, name)
    return Runner(runner.step, context, runner.alive)


def scheduler_runner(opt: torch.optim.Optimizer, sched: object, name: str) -> Runner:
    """`sched.step` after one step of the optimizer, which it expects."""
    opt.step()
    step = sched.step  # type: ignore[attr-defined]
    return Runner(partial(step, *METRIC[name]) if name in METRIC else step, alive=(opt, sched))


def measure_alone(groups: int, name: str, device: torch.device, effort: Effort) -> list[Row]:
    """A row for each provider."""
    samples = interleave(alone(workload_of(groups, device), name), device, effort)
    gc.collect()
    return [
        Row(
            part=ALONE,
            schedule=name,
            groups=groups,
            provider=provider,
            **microseconds(seconds).fields("us", 3),
            **Spread.of(ratios(seconds, samples[TORCH])).fields("ratio", 4),
        )
        for provider, seconds in samples.items()
    ]


# -- inside the launch ---------------------------------------------------------------------------


def steppers(device: torch.device, schedule: Schedule | None) -> list[Provider]:
    """Those whose step is measured with and without a schedule."""
    found = [Provider(TORCH_FUSED, partial(make_torch, fused=True, schedule=schedule))]
    for engine in our_engines(device):
        for fuse in (False, True):
            make = partial(make_ours, engine=engine, fuse=fuse, schedule=schedule)
            found.append(Provider(f"{engine} {'fused' if fuse else 'explicit'}", make))
    return found


def measure_inside(groups: int, name: str, device: torch.device, effort: Effort) -> list[Row]:
    """A row for each provider: what its step takes more than the same step without a schedule."""
    workload = workload_of(groups, device)
    runners = {
        (provider.name, with_schedule): provider.build(workload)
        for with_schedule in (False, True)
        for provider in steppers(device, SCHEDULES[name] if with_schedule else None)
    }
    samples = interleave(runners, device, effort)
    gc.collect()
    return [
        inside_row(groups, name, provider, samples) for provider, scheduled in runners if scheduled
    ]


def inside_row(
    groups: int, name: str, provider: str, samples: Mapping[tuple[str, bool], list[float]]
) -> Row:
    """The difference of each round, and the ratio of the two steps."""
    pairs = zip(samples[provider, True], samples[provider, False], strict=True)
    return Row(
        part=INSIDE,
        schedule=name,
        groups=groups,
        provider=provider,
        **microseconds([scheduled - bare for scheduled, bare in pairs]).fields("us", 3),
        **Spread.of(ratios(samples[provider, True], samples[provider, False])).fields("ratio", 4),
    )


def microseconds(seconds: list[float]) -> Spread:
    """Their spread."""
    return Spread.of([1e6 * second for second in seconds])


# -- the command ---------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table."""
    options = new_parser("Measure what schedules cost.").parse_args(arguments)
    device, effort = torch.device(options.device), QUICK if options.quick else FULL
    names = QUICK_SCHEDULES if options.quick else tuple(SCHEDULES)
    skipped = {name: why for name, why in engines(device).items() if why is not None}
    result = Result(asdict(record_here(device)), {}, skipped, [])
    stem = stem_of("schedule", options)
    for groups in GROUPS:
        print(f"{groups} groups", file=sys.stderr, flush=True)
        for name in names:
            with quiet_construction():
                result.rows.extend(measure_alone(groups, name, device, effort))
                if name not in METRIC and not (options.quick and name not in SHOWN):
                    result.rows.extend(measure_inside(groups, name, device, effort))
    print(write(result, stem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
