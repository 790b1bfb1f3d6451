"""``python -m fused_sched``; its ``doctor``, and what that says when an engine is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_sched
from fused_sched import cli
from fused_sched.cli import checks
from fused_sched.engines import available, eager_engine, triton_engine
from tests.gpu import capture as stand_in

ROOT = Path(__file__).resolve().parents[1]


def run_module(*args: str, **env: str) -> subprocess.CompletedProcess:
    """``python -m fused_sched`` in a fresh interpreter."""
    command = [sys.executable, "-m", "fused_sched", *args]
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)


def as_dict(capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """The JSON report that was printed."""
    return json.loads(capsys.readouterr().out)


def wrong_params(optimizer: Any, params: Any) -> bool:
    """A step that moves every param too far."""
    for group in optimizer.param_groups:
        torch._foreach_add_(group["params"], 0.5)
    return True


def no_params(optimizer: Any, params: Any) -> bool:
    """A step that leaves NaN behind."""
    for group in optimizer.param_groups:
        torch._foreach_mul_(group["params"], float("nan"))
    return True


def broken(optimizer: Any, params: Any) -> bool:
    raise RuntimeError("the device is on fire")


# -- a healthy machine ---------------------------------------------------------------------------


def test_doctor_says_ok_where_triton_serves_no_cpu_tensors():
    done = run_module("doctor", TRITON_INTERPRET="0", FUSED_SCHED_ENGINE="auto")
    assert done.returncode == 0, done.stderr
    assert "eager    steps   ok: " in done.stdout
    assert "triton   not available: " in done.stdout
    assert "agrees with stock torch" in done.stdout
    assert done.stderr == ""


def test_doctor_json_holds_versions_devices_and_engines(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = as_dict(capsys)
    assert report["passed"] is True
    assert report["versions"]["fused_sched"] == fused_sched.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert list(report["versions"]) == [
        "fused_sched",
        "torch",
        "triton",
        "Python",
        "CUDA",
        "native",
    ]
    assert len(report["devices"]) == 1 + torch.cuda.device_count()
    for device, found in report["devices"].items():
        reasons = {name: engine["unavailable"] for name, engine in found["engines"].items()}
        assert reasons == available(device)


def test_doctor_checks_exactly_the_engines_that_are_here(capsys):
    cli.main(["doctor", "--json"])
    for found in as_dict(capsys)["devices"].values():
        for engine in found["engines"].values():
            for check in ("sanity", "capture"):
                assert (engine[check] is None) == (engine["unavailable"] is not None)


def test_text_and_json_tell_the_same(capsys):
    cli.main(["doctor"])
    text = capsys.readouterr().out
    cli.main(["doctor", "--json"])
    report = as_dict(capsys)
    shown = [*report["versions"].values(), *report["compilers"].values()]
    for device, found in report["devices"].items():
        shown += [device, found["name"], found["chosen"], *found["engines"]]
    assert [value for value in shown if value not in text] == []


def test_check_takes_the_engine_it_is_given(monkeypatch):
    monkeypatch.setenv("FUSED_SCHED_ENGINE", "no such engine")
    assert checks.check_steps(torch.device("cpu"), "eager").passed


def test_a_graph_of_cpu_tensors_is_not_tried_and_does_not_fail(capsys):
    assert cli.main(["doctor"]) == 0
    assert "capture not tried: a CUDA graph holds no CPU tensors" in capsys.readouterr().out


# -- the capture check, in the stand-in for a graph ----------------------------------------------


@pytest.fixture
def graphs(monkeypatch):
    """``check_capture`` of the Triton engine on CPU tensors, in the tests' stand-in for a graph."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(checks, "new_graph", lambda: stand_in.new_graph(cpu))
    monkeypatch.setattr(checks, "capture", lambda graph, device: stand_in.capture(graph))
    run = checks._replayed
    return lambda: checks._compare(cpu, "triton", lambda: checks._train_ours(cpu, run))


def test_captured_steps_agree_with_stock_torch(graphs):
    check = graphs()
    assert check.error is None and check.passed


def test_a_graph_that_replays_one_lr_is_off(graphs, monkeypatch):
    update = triton_engine.update

    def without_schedule(buffer, table, grads, program, *rest):
        update(buffer, table, grads, None, *rest)

    monkeypatch.setattr(triton_engine, "update", without_schedule)
    check = graphs()
    assert check.error is None and not check.passed
    assert check.lr > checks.LR_TOLERANCE


def test_the_eager_engine_is_not_captured():
    check = checks.check_capture(torch.device("cuda"), "eager")
    assert check.passed and check.skipped


# -- the compilers -------------------------------------------------------------------------------


def test_a_compiler_that_compiles_is_said_to(monkeypatch):
    found = shutil.which("g++")
    if found is None:
        pytest.skip("no g++ here")
    monkeypatch.setenv("CXX", found)
    assert checks.compilers()["C++"] == f"{found}, compiles"


@pytest.mark.parametrize(
    ("compiler", "told"),
    [("false", "false, fails: exit status 1"), ("no-such-one", "no-such-one, does not run")],
)
def test_a_compiler_that_does_not_compile_is_said_to(compiler, told, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    assert checks.compilers()["C++"].startswith(told)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert checks.compilers()["C"] == "none found (gcc, clang or CC)"


def test_missing_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(checks.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h is not installed" in checks.compilers()["C"]


# -- an engine that is off -----------------------------------------------------------------------


@pytest.mark.parametrize("update", [wrong_params, no_params], ids=lambda f: f.__name__)
def test_doctor_fails_when_params_differ(monkeypatch, capsys, update):
    monkeypatch.setattr(eager_engine, "update", update)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "eager    steps   FAILED: largest difference to stock torch: param " in text
    assert "DIFFERS from stock torch" in text


def test_doctor_fails_when_lr_differs(monkeypatch, capsys):
    stock = torch.optim.lr_scheduler.OneCycleLR.get_lr

    def slightly_more(self: Any) -> list[float]:
        return [lr * (1 + 1e-9) for lr in stock(self)]

    monkeypatch.setattr(fused_sched.lr_scheduler.OneCycleLR, "get_lr", slightly_more)
    assert cli.main(["doctor", "--json"]) == 1
    sanity = as_dict(capsys)["devices"]["cpu"]["engines"]["eager"]["sanity"]
    assert checks.LR_TOLERANCE < sanity["lr"] < 1e-8
    assert sanity["param"] <= checks.PARAM_TOLERANCE


def test_doctor_reports_what_an_engine_raises(monkeypatch, capsys):
    monkeypatch.setattr(eager_engine, "update", broken)
    assert cli.main(["doctor"]) == 1
    assert "eager    steps   FAILED: RuntimeError: the device is on fire" in capsys.readouterr().out


FORCED = {
    "warp": "FUSED_SCHED_ENGINE: Unknown engine 'warp'",
    "triton": "Engine 'triton' is not available on cpu: no CPU tensors here",
}
"""Engine that cannot serve the CPU -> what a step raises."""


@pytest.mark.parametrize("name", FORCED)
def test_doctor_fails_when_a_step_would_raise(monkeypatch, capsys, name):
    monkeypatch.setenv("FUSED_SCHED_ENGINE", name)
    monkeypatch.setattr(triton_engine, "unavailable", lambda device: "no CPU tensors here")
    with pytest.raises((ValueError, RuntimeError), match=FORCED[name]):
        fused_sched.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1).prepare()
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert f"a step would RAISE: {FORCED[name]}" in text
    assert "agrees with stock torch" in text
    assert cli.main(["doctor", "--json"]) == 1
    report = as_dict(capsys)
    assert report["passed"] is False
    assert report["devices"]["cpu"]["chosen"] is None
    assert report["devices"]["cpu"]["raises"].startswith(FORCED[name])


# -- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["doktor"], ["doctor", "--xml"], ["plot"]], ids=" ".join)
def test_unknown_commands_and_options_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2
    assert "usage: python -m fused_sched" in capsys.readouterr().err


def test_module_without_a_command_lists_the_commands():
    done = run_module()
    assert (done.returncode, done.stderr) == (0, "")
    for name, _, what, _ in cli._COMMANDS:
        assert re.search(rf"^ +{name} +{what.split()[0]}", done.stdout, re.MULTILINE)


def test_module_says_its_version(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--version"])
    assert error.value.code == 0
    assert capsys.readouterr().out == f"fused_sched {fused_sched.__version__}\n"
