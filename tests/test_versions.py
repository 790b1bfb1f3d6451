"""What other versions of Python, torch, Triton and the compiler ask for; `make matrix` has them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import available, native_build, triton_engine
from fused_sched.runtime.held import is_held
from tests.training import set_grads

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | env
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


# -- Python --------------------------------------------------------------------------------------


def formats() -> list[str]:
    """The formats in csrc/ by which Python's values are read and made."""
    text = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "csrc").iterdir())
    return re.findall(r'\b(?:PyArg_Parse\w*|Py_BuildValue|PyObject_Call\w+)\([^;"]*"([^"]*)"', text)


def test_no_format_depends_on_the_python_that_compiles():
    """`#` compiled with the headers of Python 3.13 raises on 3.12 and older."""
    assert "LN" in formats() and len(formats()) >= 8
    assert [found for found in formats() if "#" in found] == []


def test_who_holds_the_state_is_seen():
    """The counts of references differ between Pythons."""
    owner = SimpleNamespace(state={number: {} for number in range(3)})
    assert not is_held(owner)
    holder = owner.state
    assert is_held(owner)
    del holder
    entry = owner.state[1]
    assert is_held(owner)
    del entry
    assert not is_held(owner)


FREE_THREADED = """
import runpy, sys, sysconfig
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1
sys.argv = ["setup.py", "--version"]
runpy.run_path("setup.py")
"""


def test_a_free_threaded_python_is_refused_in_one_line():
    done = run(sys.executable, "-c", FREE_THREADED)
    assert done.returncode == 1
    assert re.fullmatch("fused_sched: this Python is a free-threaded build; use .*\n", done.stderr)


def test_only_a_free_threaded_python_is_refused():
    native_build.check_python(free_threaded=False)
    with pytest.raises(native_build.BuildError, match="free-threaded"):
        native_build.check_python(free_threaded=True)


# -- Triton --------------------------------------------------------------------------------------


@pytest.fixture
def compilations(monkeypatch):
    """[(kernel, key, options)] of what is compiled for a GPU; nothing is launched."""
    found = []
    launch = {(grid, 1, 1): lambda *_: None for grid in range(100)}
    compiled: dict[Any, Any] = {}

    def compile_all(jobs):
        for kernel, key, _, options in jobs:
            if key not in compiled:
                found.append((kernel.__name__, key, options))
            compiled[key] = launch

    monkeypatch.setattr(triton_engine, "_compiled", compiled)
    monkeypatch.setattr(triton_engine, "_compile", compile_all)
    monkeypatch.setattr(triton_engine, "_interpreting", lambda: False)
    monkeypatch.setattr(triton_engine, "unavailable", lambda device: None)
    return found


def test_every_kernel_is_compiled_with_the_same_fusion(compilations):
    """Or an explicit schedule would round unlike a fused one; unset, Triton 3.9 warns."""
    with fused_sched.use_engine("triton"):
        params = [Parameter(torch.ones(3))]
        opt = fused_sched.optim.AdamW(params, lr=0.1)
        scheduler = fused_sched.lr_scheduler.ReduceLROnPlateau(opt)
        opt.prepare()
        set_grads(params, step=0)
        opt.step()
        scheduler.step(torch.ones(()))  # advances on the device
    kernels = [kernel for kernel, *_ in compilations]
    assert kernels.count("update_kernel") == 3 and kernels.count("schedule_kernel") == 1
    assert {options["enable_fp_fusion"] for *_, options in compilations} == {True}


def test_a_first_step_compiles_what_it_launches(compilations):
    """And the schedule's kernel; a GradScaler's variants are compiled when one is at work."""
    with fused_sched.use_engine("triton"):
        params = [Parameter(torch.ones(3))]
        opt = fused_sched.optim.AdamW(params, lr=0.1)
        set_grads(params, step=0)
        for scale, found_inf, kernels in (
            (None, None, 2),
            (torch.ones(1), torch.zeros(1), 3),
            (None, torch.zeros(1), 4),
            (None, None, 4),
        ):
            opt.grad_scale, opt.found_inf = scale, found_inf
            opt.step()
            assert len(compilations) == kernels
    assert len({key for _, key, _ in compilations}) == 4


COMPILE = """
import threading, torch, triton
import fused_sched
from tests import triton_on_host

launched, compiled = [], []
triton_on_host.serve(launched)
triton.knobs.compilation.listener = lambda src, **_: compiled.append(
    (src.fn.__name__, threading.get_ident())
)
param = torch.nn.Parameter(torch.ones(5))
param.grad = torch.ones(5)
with fused_sched.use_engine("triton"):
    fused_sched.optim.SGD([param], lr=0.1).step()
print(sorted(name for name, _ in compiled), len({thread for _, thread in compiled}))
print([name for name, *_ in launched])
"""


def test_kernels_are_compiled_side_by_side(tmp_path):
    done = run(
        *(sys.executable, "-W", "error", "-c", COMPILE),
        TRITON_INTERPRET="0",
        TRITON_CACHE_DIR=str(tmp_path),
    )
    assert done.stdout.splitlines() == [
        "['schedule_kernel', 'update_kernel'] 2",
        "['update_kernel']",
    ], done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only where there is no GPU")
def test_no_engine_that_launches_serves_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(triton_engine, "_missing", lambda: None)
    monkeypatch.setattr(triton_engine, "_interpreting", lambda: False)
    assert available("cuda")["triton"] == "torch sees no GPU"


# -- torch ---------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_takes_the_torch_of_a_virtual_environment(tmp_path):
    """It would otherwise install another one, with gigabytes of CUDA."""
    theirs = tmp_path / "theirs"
    run(sys.executable, "-m", "venv", "--without-pip", str(theirs))
    (packages,) = theirs.glob("lib/python*/site-packages")
    (packages / "torch.py").write_text("__version__ = '2.99.0'\n")
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = f"PYTHON={theirs}/bin/python"
    done = run("make", "-s", ".venv/.ready", python, "PIP=echo pip", cwd=tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "pytest" in done.stdout and "torch==" not in done.stdout
    told = run(".venv/bin/python", "-c", "import torch; print(torch)", cwd=tmp_path, PYTHONPATH="")
    assert str(packages) in told.stdout


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_the_demo_names_what_it_lacks(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import examples.train_digits"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 1
    assert re.fullmatch(rf"The demo needs {missing}.*: pip install .*scikit-learn\n", done.stderr)
