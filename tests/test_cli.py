"""``python -m fused_sched doctor``: what it says, and what it says when an engine is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_sched
from fused_sched import cli
from fused_sched.engines import available, eager_engine

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
    assert "eager    ok: " in done.stdout
    assert "triton   not here: " in done.stdout
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
            assert (engine["sanity"] is None) == (engine["unavailable"] is not None)


def test_text_and_json_tell_the_same(capsys):
    cli.main(["doctor"])
    text = capsys.readouterr().out
    cli.main(["doctor", "--json"])
    report = as_dict(capsys)
    shown = [*report["versions"].values()]
    for device, found in report["devices"].items():
        shown += [device, found["name"], found["chosen"], *found["engines"]]
    assert [value for value in shown if value not in text] == []


def test_check_takes_the_engine_it_is_given(monkeypatch):
    monkeypatch.setenv("FUSED_SCHED_ENGINE", "no such engine")
    assert cli.check(torch.device("cpu"), "eager").passed


# -- an engine that is off -----------------------------------------------------------------------


@pytest.mark.parametrize("update", [wrong_params, no_params], ids=lambda f: f.__name__)
def test_doctor_fails_when_params_differ(monkeypatch, capsys, update):
    monkeypatch.setattr(eager_engine, "update", update)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "eager    OFF: largest difference to stock torch: param " in text
    assert "DIFFERS from stock torch" in text


def test_doctor_fails_when_lr_differs(monkeypatch, capsys):
    stock = torch.optim.lr_scheduler.OneCycleLR.get_lr

    def slightly_more(self: Any) -> list[float]:
        return [lr * (1 + 1e-9) for lr in stock(self)]

    monkeypatch.setattr(fused_sched.lr_scheduler.OneCycleLR, "get_lr", slightly_more)
    assert cli.main(["doctor", "--json"]) == 1
    sanity = as_dict(capsys)["devices"]["cpu"]["engines"]["eager"]["sanity"]
    assert cli.LR_TOLERANCE < sanity["lr"] < 1e-8
    assert sanity["param"] <= cli.PARAM_TOLERANCE


def test_doctor_reports_what_an_engine_raises(monkeypatch, capsys):
    monkeypatch.setattr(eager_engine, "update", broken)
    assert cli.main(["doctor"]) == 1
    assert "eager    OFF: RuntimeError: the device is on fire" in capsys.readouterr().out


def test_doctor_shows_a_forced_engine_that_does_not_exist(monkeypatch, capsys):
    monkeypatch.setenv("FUSED_SCHED_ENGINE", "warp")
    cli.main(["doctor"])
    assert (
        "a step takes none, it raises: FUSED_SCHED_ENGINE: Unknown engine 'warp'"
        in capsys.readouterr().out
    )


# -- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["doktor"], ["doctor", "--xml"]], ids=" ".join)
def test_unknown_commands_and_options_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2
    assert "usage: python -m fused_sched" in capsys.readouterr().err


def test_module_without_a_command_exits_with_2():
    assert run_module().returncode == 2
