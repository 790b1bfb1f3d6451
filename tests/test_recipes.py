"""The recipes of examples/recipes run as a user runs them, and compare themselves with torch."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import differences

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.py"))
FRAMEWORKS = {
    "accelerate_loop": "accelerate",
    "distributed": "torch.distributed",
    "fabric_loop": "lightning",
    "lightning_callbacks": "lightning",
    "lightning_trainer": "lightning",
    "timm_schedulers": "timm",
    "transformers_trainer": "transformers",
}


def test_every_recipe_is_here():
    assert [path.stem for path in RECIPES] == list(FRAMEWORKS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_agrees_with_stock_torch(recipe, tmp_path):
    framework = FRAMEWORKS[recipe.stem]
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    found = tmp_path / "differences.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_recipe", str(recipe), str(found)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "with stock torch" in done.stdout
    differences.merge(differences.seen, json.loads(found.read_text()))
