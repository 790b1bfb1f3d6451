"""How does a step's time grow with the number of elements, and from where does memory limit it?

    python -m benchmarks.scaling [--quick] [--out DIR] [--optimizer NAME] [--providers NAME ...]

10 equal tensors of 10^3 to 10^9 elements together, as far as memory goes; `--quick` to 10^7. The
measurement is that of `benchmarks.step`, whose rows these are.
"""

import argparse
import sys

import torch

from benchmarks.all_providers import DEFAULT, all_providers, baseline, chosen_providers
from benchmarks.command import new_parser, stem_of
from benchmarks.measure import Effort
from benchmarks.models import Model, one_group
from benchmarks.report import write
from benchmarks.step import measure_all
from benchmarks.workload import RULES, Task

TENSORS = 10
SIZES = (*(digit * 10**power for power in range(3, 9) for digit in (1, 2, 5)), 10**9)
QUICK_SIZES = tuple(10**power for power in range(3, 8))
FULL = Effort(rounds=15, batch_seconds=0.02)
QUICK = Effort(rounds=5, batch_seconds=0.01)


def model_of(elements: int) -> Model:
    """So many elements in TENSORS equal tensors, named by their number."""
    return one_group(str(elements), ((elements // TENSORS,),) * TENSORS)


def default_providers(device: torch.device, task: Task) -> list[str]:
    """Torch's two and our fused ones: memory holds fewer states the larger they are."""
    names = list(all_providers(device, task))
    ours = [name for name in names if " fused" in name and not name.startswith(("torch", "eager"))]
    return [DEFAULT, baseline(task), *ours]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = new_parser("Measure a step by the number of elements.")
    parser.add_argument("--optimizer", choices=RULES, default="AdamW")
    parser.add_argument("--providers", nargs="+", metavar="NAME", help="default: fused ones")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="numbers of elements")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the files, print the table."""
    options = parse_arguments(arguments)
    device, task = torch.device(options.device), Task(options.optimizer)
    names = options.providers or default_providers(device, task)
    providers = chosen_providers(names, device, task, options.quick)
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    effort = QUICK if options.quick else FULL
    stem = stem_of("scaling", options, task.optimizer, task.dtype)
    models = [model_of(size) for size in sizes]
    result = measure_all(models, task, providers, device, effort, stem, options.quick)
    print(write(result, stem))
    return 0


if __name__ == "__main__":
    sys.exit(main())
