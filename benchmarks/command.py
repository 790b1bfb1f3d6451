"""The command line that every benchmark has."""

import argparse
from pathlib import Path

import torch

from benchmarks.record import device_name
from benchmarks.result import RESULTS, file_stem


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser of --quick, --out and --device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds, few cases")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    return parser


def stem_of(question: str, options: argparse.Namespace, *details: str) -> Path:
    """Where a result's files go, without their suffix."""
    device = device_name(torch.device(options.device))
    return Path(options.out) / file_stem(question, device, *details, quick=options.quick)
