"""How long does a step keep the host, by the number of tensors, and how long does the first take?

    python -m benchmarks.host [--quick] [--out DIR] [--providers NAME ...]

Tensors have one element, so that a CPU too spends its time on the host's work and not on the
arithmetic. On CUDA the host's clock runs without synchronising. `--first NAME` prints the seconds
of the first step of this process, for the row of the compilers' empty caches.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch

from benchmarks.all_providers import all_providers, chosen_providers, left_out
from benchmarks.command import new_parser, stem_of
from benchmarks.measure import (
    Effort,
    Spread,
    host_seconds,
    interleave,
    no_garbage_collection,
    release,
    synchronize,
)
from benchmarks.models import one_group
from benchmarks.providers import Provider
from benchmarks.record import record_here
from benchmarks.report import write
from benchmarks.result import ROOT, Result
from benchmarks.tables.host import Row
from benchmarks.workload import Task, Workload

TENSORS = (10, 30, 100, 300, 1000, 3000, 10_000)
QUICK_TENSORS = (10, 100, 1000, 10_000)
COLD_TENSORS = 10
FULL = Effort(rounds=15, batch_seconds=0.02, max_steps=500)
QUICK = Effort(rounds=5, batch_seconds=0.005, max_steps=500)
TASK = Task("AdamW")

CACHES = ("XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
"""Where our compiled engine, Triton and Inductor keep what they have compiled."""


def workload_of(tensors: int, device: torch.device) -> Workload:
    """So many tensors of one element, in one group."""
    return Workload.make(one_group(str(tensors), ((1,),) * tensors), device, TASK)


def first_step(provider: Provider, workload: Workload) -> float:
    """Seconds to build an optimizer and its scheduler and to step, until the device is done too."""
    synchronize(workload.device)
    with no_garbage_collection():
        start = time.perf_counter()
        pair = provider.make(workload)
        with pair.context():
            pair.runner().step()
        synchronize(workload.device)
        return time.perf_counter() - start


def cold_step(provider: str, device: torch.device) -> float:
    """Seconds of the first step of a new process whose compilers' caches are empty."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **dict.fromkeys(CACHES, folder)}
        command = [sys.executable, "-m", "benchmarks.host", "--first", provider]
        done = subprocess.run(
            [*command, "--device", device.type],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    return float(done.stdout)


def measure(
    tensors: int,
    providers: Sequence[Provider],
    device: torch.device,
    effort: Effort,
    cold: bool,
) -> list[Row]:
    """A row for each provider that serves so many tensors."""
    workload = workload_of(tensors, device)
    serving = [provider for provider in providers if provider.serves(tensors)]
    runners = {provider.name: provider.build(workload) for provider in serving}
    firsts = {one.name: first_step(one, workload) for one in serving}
    samples = interleave(runners, device, effort, clock=host_seconds)
    del runners
    release(device)
    return [
        Row(
            tensors=tensors,
            provider=name,
            **Spread.of([1e6 * second for second in seconds]).fields("us", 2),
            first_us=round(1e6 * firsts[name], 1),
            cold_us=round(1e6 * cold_step(name, device), 1) if cold else None,
        )
        for name, seconds in samples.items()
    ]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("Measure the host's time per step.")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--tensors", nargs="+", type=int, metavar="N", help="default: 10 ... 10000")
    parser.add_argument("--first", metavar="NAME", help="only this provider's first step, once")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table."""
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    if options.first:
        provider = all_providers(device, TASK)[options.first]
        print(first_step(provider, workload_of(COLD_TENSORS, device)))
        return 0
    # A replay's host time does not depend on the number of tensors, and it has no first step.
    chosen = chosen_providers(options.providers, device, TASK, options.quick)
    providers = [provider for provider in chosen if not provider.replay]
    numbers = options.tensors or (QUICK_TENSORS if options.quick else TENSORS)
    effort = QUICK if options.quick else FULL
    result = Result(asdict(record_here(device)), {}, left_out(device, TASK, options.quick), [])
    stem = stem_of("host", options)
    for tensors in numbers:
        print(f"{tensors} tensors", file=sys.stderr, flush=True)
        cold = tensors == COLD_TENSORS and not options.quick
        result.rows.extend(measure(tensors, providers, device, effort, cold))
    print(write(result, stem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
