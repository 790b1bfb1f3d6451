"""How many training iterations a second does a CUDA graph replay, with a live schedule?

    python -m benchmarks.graph [--quick] [--out DIR]

An iteration is forward, backward, `opt.step()` and `sched.step()`. Stock torch captures with
`capturable=True` and a tensor lr, and its scheduler fills that tensor from the host between two
replays; ours is in the graph. Eager iterations of the same stand beside them. Needs a GPU.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from benchmarks.all_providers import COMPILED, all_providers, left_out
from benchmarks.command import new_parser, stem_of
from benchmarks.measure import Effort, Runner, Spread, count_launches, interleave, ratios, release
from benchmarks.models import Model, one_group
from benchmarks.networks import NETWORKS, Network
from benchmarks.peers import PEERS
from benchmarks.providers import Pair, Provider, captured, in_turn, warm_up
from benchmarks.record import record_here
from benchmarks.report import write
from benchmarks.result import Result
from benchmarks.tables.graph import BASELINE, Row
from benchmarks.workload import Task, Workload

FULL = Effort(rounds=25, batch_seconds=0.05)
QUICK = Effort(rounds=7, batch_seconds=0.02)
TASK = Task("AdamW")


@dataclass(frozen=True)
class Training:
    """One network that one pair trains, on one batch."""

    module: nn.Module
    backward: Callable[[], object]
    pair: Pair

    @classmethod
    def make(cls, network: Network, provider: Provider, device: torch.device) -> "Training":
        """The same initial weights and data for every provider."""
        torch.manual_seed(0)
        module = network.build().to(device)
        inputs, target = (tensor.to(device) for tensor in network.batch())

        def backward() -> None:
            network.loss(module(inputs), target).backward()

        params = [list(module.parameters())]
        workload = Workload(model_of(network.name, module), device, TASK, params)
        return cls(module, backward, provider.make(workload))

    def compute(self) -> None:
        """What a graph can hold: gradients anew, and the pair's update."""
        self.module.zero_grad(set_to_none=True)
        self.backward()
        self.pair.update()

    def runner(self, device: torch.device, replay: bool) -> Runner:
        """Iterations, warmed up; with `replay` captured but for what must run on the host."""
        with self.pair.context():
            warm_up(in_turn(self.compute, self.pair.host), device)
            compute = captured(self.compute) if replay else self.compute
        return Runner(in_turn(compute, self.pair.host), self.pair.context, self)


def model_of(name: str, module: nn.Module) -> Model:
    """A module's shapes."""
    return one_group(name, tuple(tuple(param.shape) for param in module.parameters()))


def iterating(device: torch.device) -> list[Provider]:
    """Providers of whole iterations: torch's and ours, each eager and, if it can be, replayed."""
    skipped = {COMPILED, *(peer.name for peer in PEERS)}
    return [one for name, one in all_providers(device, TASK).items() if name not in skipped]


def measure(
    network: Network, providers: Sequence[Provider], device: torch.device, effort: Effort
) -> list[Row]:
    """A row for each provider, all measured by turns."""
    runners = {
        one.name: Training.make(network, one, device).runner(device, one.replay)
        for one in providers
    }
    samples = interleave(runners, device, effort)
    return [
        Row(
            model=network.name,
            provider=name,
            **Spread.of([1 / seconds for seconds in samples[name]]).fields("per_second", 1),
            **Spread.of(ratios(samples[BASELINE], samples[name])).fields("speedup", 4),
            launches=count_launches(runner, device),
        )
        for name, runner in runners.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table; without CUDA say so, and that is all."""
    options = new_parser("Measure replayed training iterations.").parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.graph: nothing measured, CUDA graphs need a GPU and torch sees none")
        return 0
    device, effort = torch.device("cuda"), QUICK if options.quick else FULL
    result = Result(asdict(record_here(device)), {}, left_out(device, TASK, options.quick), [])
    stem = stem_of("graph", options)
    for network in NETWORKS.values():
        print(network.name, file=sys.stderr, flush=True)
        result.rows.extend(measure(network, iterating(device), device, effort))
        result.models[network.name] = model_of(network.name, network.build()).describe()
        write(result, stem)
        release(device)
    print(write(result, stem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
