"""The benchmarks' shapes, files and tables; one small measurement from end to end."""

from pathlib import Path

import pytest

from benchmarks.measure import Spread
from benchmarks.models import MODELS
from benchmarks.report import (
    END,
    RESULTS,
    START,
    Result,
    format_time,
    full_report,
    readme_agrees,
    updated_readme,
)
from benchmarks.step import main

# name: (tensors, groups, parameters)
SIZES = {
    "10x64": (10, 1, 640),
    "1000x1000": (1000, 1, 1_000_000),
    "mlp": (6, 1, 84_060),
    "resnet50": (161, 1, 25_557_032),
    "gpt2": (148, 1, 124_439_808),
    "64M": (1, 1, 67_108_864),
    "28groups": (152, 28, 5_717_416),
}

# microseconds: as tables show them
TIMES = {0.5: "0.500 us", 12.34: "12.3 us", 999.4: "999 us", 1234.0: "1.23 ms", 4.5e7: "45.0 s"}


@pytest.fixture(scope="module")
def result_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON file of a quick run of one of our providers on the smallest model."""
    out = tmp_path_factory.mktemp("results")
    chosen = ["--models", "10x64", "--providers", "eager fused"]
    assert main(["--quick", "--device", "cpu", "--out", str(out), *chosen]) == 0
    (path,) = out.glob("step-*-quick.json")
    return path


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_architectures_sizes(name: str) -> None:
    model = MODELS[name]
    assert (len(model.shapes), len(model.groups), model.num_params) == SIZES[name]


def test_sizes_cover_every_model() -> None:
    assert set(SIZES) == set(MODELS)


@pytest.mark.parametrize("us", TIMES)
def test_times_are_shown_with_three_digits(us: float) -> None:
    assert format_time(us) == TIMES[us]


def test_spread_is_median_and_outer_fifths() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_measurement_compares_with_torch(result_path: Path) -> None:
    result = Result.load(result_path)
    assert [row.provider for row in result.rows] == ["torch default", "torch fused", "eager fused"]
    assert all(0 < row.us_low <= row.us <= row.us_high for row in result.rows)
    default, fused, _ = result.rows
    assert (default.to_default, fused.to_fused) == (1, 1)
    assert [row.bytes for row in result.rows] == [640 * 28] * 3
    assert all(row.copy_gb_per_s > 0 and row.launches is None for row in result.rows)


def test_measurement_writes_every_file(result_path: Path) -> None:
    result = Result.load(result_path)
    assert {path.suffix for path in result_path.parent.iterdir()} == {
        ".csv",
        ".json",
        ".md",
        ".png",
    }
    assert result_path.with_suffix(".md").read_text() == full_report(result)
    assert result.record["device"] and result.record["torch"]


def test_stale_readme_is_noticed(result_path: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(updated_readme(f"before\n{START}old{END}\nafter\n", [result_path]))
    assert readme_agrees(readme, result_path.parent)
    assert readme.read_text().startswith("before\n") and readme.read_text().endswith("\nafter\n")
    readme.write_text(readme.read_text().replace(" us (1.00)", " us (0.50)"))
    assert not readme_agrees(readme, result_path.parent)


def test_readme_states_the_results() -> None:
    assert list(RESULTS.glob("step-*.json"))
    assert readme_agrees(), "the README's table is stale: run python -m benchmarks.report"
