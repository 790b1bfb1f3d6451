"""Runs a recipe as its user does, and writes into a file how far its comparisons were apart.

python -m tests.run_recipe RECIPE DIFFERENCES
"""

import importlib.util
import json
import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests import differences

assert_close = torch.testing.assert_close


def noting(ours: Sequence[Any], stock: Sequence[Any], **options: Any) -> None:
    """In place of assert_close: a recipe compares params, or rates."""
    if isinstance(stock[0], Tensor):
        differences.note_params(ours, stock)
    elif len(ours) == len(stock):
        mine, other = (torch.tensor(rates, dtype=torch.float64) for rates in (ours, stock))
        differences.note_schedule(mine, other, other.abs().amax())
    assert_close(ours, stock, **options)


def without_models() -> None:
    """`import timm` imports torchvision, whose wheels want CUDA. Its schedulers do not."""
    found = importlib.util.find_spec("timm")
    package = types.ModuleType("timm")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["timm"] = package


if __name__ == "__main__":
    recipe, out = sys.argv[1:]
    if Path(recipe).stem.startswith("timm"):
        without_models()
    torch.testing.assert_close = noting
    runpy.run_path(recipe, run_name="__main__")
    Path(out).write_text(json.dumps(differences.take()))
