"""Is any ordinary use slower than with torch's fused step? One turn of its loop, beside torch's.

    python -m benchmarks.cases [--quick] [--out DIR] [--uses NAME ...] [--engines NAME ...]

A turn is what a loop does after `backward()`: see `benchmarks/uses.py`. On a CPU the model is a
small MLP, so that the time is the host's.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial

import torch

import fused_sched
from benchmarks.all_providers import engines
from benchmarks.command import new_parser, stem_of
from benchmarks.measure import Effort, Runner, Spread, interleave, ratios, release
from benchmarks.providers import WARM_UP_STEPS
from benchmarks.record import record_here
from benchmarks.report import write
from benchmarks.result import Result
from benchmarks.tables.cases import Row
from benchmarks.uses import FUSED, USES, Provider, Use, providers
from benchmarks.workload import Task, Workload

FULL = Effort(rounds=25, batch_seconds=0.02)
QUICK = Effort(rounds=7, batch_seconds=0.005)
TASK = Task("AdamW")


def measure(
    use: Use, chosen: Sequence[Provider], device: torch.device, effort: Effort
) -> list[Row]:
    """A row for each provider that serves the use, all measured by turns on the same parameters."""
    workload = Workload.make(use.model, device, TASK)
    serving = [provider for provider in chosen if use.serves(provider)]
    runners = {provider.name: runner_of(use, provider, workload) for provider in serving}
    if use.first:
        effort = replace(effort, batch_seconds=0.0, max_steps=1)
    samples = interleave(runners, device, effort)
    del runners
    release(device)
    return [make_row(use.name, name, samples) for name in samples]


def runner_of(use: Use, provider: Provider, workload: Workload) -> Runner:
    """One provider's turns, warmed up; or with new optimizers for each."""
    context = engine_context(provider)
    begin = partial(use.begin, provider)
    if use.first:
        first = First(lambda: begin(workload.param_groups()), context)
        return Runner(first.turn, first.built)
    with context():
        runner = begin(workload.param_groups())
        for _ in range(WARM_UP_STEPS):
            runner.step()
    return replace(runner, context=context)


def engine_context(provider: Provider) -> Callable[[], AbstractContextManager[object]]:
    """Within it our optimizers step on the provider's engine."""
    if provider.engine is None:
        return nullcontext
    return partial(fused_sched.use_engine, provider.engine)


class First:
    """First turns: each of a loop that was built just before, outside of the clock."""

    def __init__(
        self, build: Callable[[], Runner], context: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._build, self._context = build, context
        self._runner: Runner | None = None

    @contextmanager
    def built(self) -> Iterator[None]:
        """Within it there is a new loop."""
        with self._context():
            self._runner = self._build()
            yield
            self._runner = None

    def turn(self) -> None:
        """The loop's next turn."""
        assert self._runner is not None
        self._runner.step()


def make_row(use: str, provider: str, samples: Mapping[str, list[float]]) -> Row:
    """Summarise one provider's samples; sample i of all providers is of round i."""
    seconds = samples[provider]
    return Row(
        use=use,
        provider=provider,
        **Spread.of([1e6 * second for second in seconds]).fields("us", 2),
        **Spread.of(ratios(seconds, samples[FUSED.name])).fields("to_fused", 4),
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("Measure ordinary uses beside torch's fused step.")
    parser.add_argument("--uses", nargs="+", choices=USES, default=list(USES), metavar="NAME")
    parser.add_argument("--engines", nargs="+", metavar="NAME", help="default: all but eager")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table."""
    options = parse_arguments(arguments)
    device, effort = torch.device(options.device), QUICK if options.quick else FULL
    absent = {name: why for name, why in engines(device).items() if why is not None}
    named = options.engines or [name for name in engines(device) if name != "eager"]
    chosen = providers([name for name in named if name not in absent])
    result = Result(asdict(record_here(device)), {}, absent, [])
    for name in options.uses:
        print(name, file=sys.stderr, flush=True)
        result.rows.extend(measure(USES[name], chosen, device, effort))
        result.models[name] = USES[name].about
    print(write(result, stem_of("cases", options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
