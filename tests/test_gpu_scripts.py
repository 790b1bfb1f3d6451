"""`make gpu` and `make gpu-bench` with a python3 that only notes what it is asked to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import fused_sched
from benchmarks.models import QUICK_MODELS
from tests.gpu import sanitize
from tests.gpu.order import FIRST

ROOT = Path(__file__).parent.parent
SCRIPTS = {"gpu": "tests/gpu/run.sh", "gpu-bench": "benchmarks/gpu.sh"}
KILL_SECONDS, MAX_SECONDS = 5, 540

PYTHON = """\
#!/usr/bin/env bash
# Notes its arguments; a word of $FAILS in them makes it fail.
if [ "$1" = -c ]; then
    case "$2" in *get_device_capability*) echo 9.0 ;; *python_version*) echo 3.12.3 ;; esac
else
    echo "$*" >>"$CALLS"
    all="$*"
    case "$all" in *"--out "*) out=${all#*--out }; touch "${out%% *}/step-$BASHPID.json" ;; esac
fi
for word in $FAILS; do case "$*" in *"$word"*) exit 1 ;; esac; done
exit 0
"""


def run(script: str, folder: Path, fails: str = "") -> tuple[subprocess.CompletedProcess, list]:
    """The script's end and output, and what it ran: lines of arguments of python3."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "python3").write_text(PYTHON)
    (tools / "compute-sanitizer").write_text('#!/usr/bin/env bash\nexec "${@: -3}"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    calls = folder / "calls"
    env = os.environ | {"OUT": str(folder / "out"), "CALLS": str(calls), "FAILS": fails}
    env["PATH"] = f"{tools}:{env['PATH']}"
    command = ["bash", str(ROOT / SCRIPTS[script])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_make_names_the_scripts() -> None:
    text = (ROOT / "Makefile").read_text()
    for target, script in SCRIPTS.items():
        assert f"\n{target}:\n\tbash {script}\n" in text


def test_gpu_builds_and_tests_and_times_alone(tmp_path: Path) -> None:
    done, calls = run("gpu", tmp_path)
    assert done.returncode == 0 and "no stage failed" in done.stdout, done
    words = ["build_ext", "fused_sched doctor", "-m not alone", "-m alone"]
    assert len(calls) == 4 and all(w in line for w, line in zip(words, calls, strict=True)), calls
    assert "-n 12" in calls[2] and "-n" not in calls[3].split()
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {f"{name}.log" for name in ("build", "doctor", "tests", "tests-alone")}


def test_limits_of_gpu_leave_room_within_ten_minutes(tmp_path: Path) -> None:
    limits = re.findall(r"at most (\d+) s", run("gpu", tmp_path)[0].stdout)
    assert sum(int(one) + KILL_SECONDS for one in limits) <= MAX_SECONDS
    assert "doctor: at most 90 s" in run("gpu", make(tmp_path / "again"))[0].stdout


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_gpu_bench_checks_memory_and_measures(tmp_path: Path) -> None:
    done, calls = run("gpu-bench", tmp_path)
    assert done.returncode == 0, done
    assert "tests.gpu.sanitize" in calls[0] and "benchmarks.step --quick" in calls[1]
    assert "benchmarks.graph" in calls[2] and len(calls) == 10
    assert not any("build_ext" in line for line in calls)  # there is one
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        names = archive.getnames()
    assert sum(name.endswith(".json") for name in names) == 9 and "./log.txt" in names
    assert len(list((tmp_path / "out").iterdir())) <= 8


def test_gpu_bench_builds_where_nothing_is_compiled(tmp_path: Path) -> None:
    _, calls = run("gpu-bench", tmp_path, fails="native_library")
    assert "build_ext" in calls[0] and "sanitize" in calls[1]


def test_models_that_tell_most_are_measured_first() -> None:
    chosen = re.findall(r"--models (.+)", (ROOT / SCRIPTS["gpu-bench"]).read_text())
    assert len(chosen) == 2 and all(names.startswith("gpt2 resnet50 ") for names in chosen)
    for names in chosen:
        assert {*QUICK_MODELS, "10000x64"} == set(names.split())


@pytest.mark.parametrize("part", ["schedules", "scaler", "optimizers"])
def test_what_memcheck_runs_runs(part: str, capsys: pytest.CaptureFixture) -> None:
    with fused_sched.use_engine("native"):
        getattr(sanitize, part)(torch.device("cpu"))
    assert "ok" in capsys.readouterr().out


@pytest.mark.parametrize("script, fails", [("gpu", "doctor"), ("gpu-bench", "benchmarks.step")])
def test_failed_stage_stops_nothing_and_fails_the_whole(
    script: str, fails: str, tmp_path: Path
) -> None:
    done, calls = run(script, tmp_path, fails=fails)
    assert done.returncode == 1 and re.search(f"== failed:.*{fails.split('.')[-1]}", done.stdout)
    assert "-m alone" in calls[-1] or "benchmarks.scaling" in calls[-1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_named_with_the_way_to_bring_it(script: str, tmp_path: Path) -> None:
    assert "missing" not in run(script, tmp_path)[0].stdout
    lacks = {"gpu": ("pytest-xdist", "xdist"), "gpu-bench": ("matplotlib", "matplotlib")}
    package, module = lacks[script]
    done, _ = run(script, make(tmp_path / "again"), fails=f"{module}")
    (line,) = (one for one in done.stdout.splitlines() if "missing" in one)
    assert line.startswith(f"== missing: {package}.") and "--python-version 3.12.3" in line
    assert f"pip download --only-binary=:all: --python-version 3.12.3 -d wheels {package};" in line
    assert f"pip install --no-index --find-links wheels {package}" in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_gpu_nothing_runs(script: str, tmp_path: Path) -> None:
    done, calls = run(script, tmp_path, fails="is_available")
    assert done.returncode == 1 and calls == [] and "no torch that sees a GPU" in done.stdout


# -- the tests' order and their report -----------------------------------------------------------


def test_files_that_come_first_are_there() -> None:
    assert all((ROOT / "tests" / "gpu" / name).exists() for name in FIRST)


TESTS = """
import os
def test_passes(record_property):
    record_property("host_time", "<3 us")
def test_fails():
    assert "<&\\x00" == "é"
def test_is_skipped():
    import pytest; pytest.skip("needs a GPU")
def test_is_killed():
    os.kill(os.getpid(), 9)
"""


def test_report_is_whole_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(textwrap.dedent(TESTS))
    report = tmp_path / "out" / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."]
    command += ["-p", "tests.gpu.junit", f"--junit-as-it-goes={report}", "test_one.py"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == -9, done
    cases = list(ElementTree.parse(report).iter("testcase"))
    outcomes = {case.get("name"): [part.tag for part in case] for case in cases}
    assert outcomes == {
        "test_passes": ["properties"],
        "test_fails": ["failure"],
        "test_is_skipped": ["skipped"],
    }
    assert cases[0].find("properties/property").attrib == {"name": "host_time", "value": "<3 us"}
