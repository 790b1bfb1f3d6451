"""Under settings of the whole process: another default device, another allocator."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import fused_sched

from .training import ADAMW_ONE_CYCLE, assert_same_params, assert_same_values, train_both

ROOT = Path(__file__).resolve().parents[2]


def test_default_device(device):
    """The GPU, as many scripts have it; without one ``meta``, which holds no numbers."""
    ours, stock = train_both(ADAMW_ONE_CYCLE, device)
    with torch.device(device if device.type == "cuda" else "meta"):
        fused_sched.fuse(ours.opt, ours.sched)
        history = ours.sched.history(100)
        ours.warm_up()
        graph = ours.capture()
        for _ in range(3):
            ours.replay(graph)
        ours.opt.param_groups[0]["weight_decay"] = 0.5
        saved = ours.opt.state_dict()
        ours.opt.load_state_dict(saved)
        ours.replay(graph)
        used = history.drain()["lr"]
    stock.warm_up()
    for _ in range(3):
        stock.iteration()
    stock.opt.param_groups[0]["weight_decay"] = 0.5
    stock.iteration()
    assert_same_values(ours, stock, "after 4 replays")
    assert_same_params(ours, stock, torch.float64, "after 4 replays")
    assert used.device.type == "cpu" and len(used) == 7


_RUN = """
import sys, pytest, torch
status = pytest.main(sys.argv[1:])
tensor = torch.ones(1, device="cuda")
assert any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())
sys.exit(status)
"""


def test_expandable_segments(cuda, engine):
    """The setting is a process's own: some tests of replays run in another one."""
    asked = "expandable_segments:True"
    environment = os.environ | {"PYTORCH_ALLOC_CONF": asked, "PYTORCH_CUDA_ALLOC_CONF": asked}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
        environment.pop(name, None)
    command = [sys.executable, "-c", _RUN, "-q", "-p", "no:cacheprovider"]
    command += ["--confcutdir=tests/gpu", "-o", "filterwarnings=default"]
    command += ["tests/gpu/test_graphs.py", "tests/gpu/test_edits.py", "-k"]
    command += [f"{engine} and (in_turn or pressure or checkpoint_loaded or release_continues)"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


_FIRST_IN_A_CAPTURE = """
import sys, torch, fused_sched
fused_sched.use_engine(sys.argv[1])
weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
weight.grad = torch.ones_like(weight)
touched = torch.zeros(1, device="cuda")
opt = fused_sched.optim.SGD([weight], lr=1.0)
with torch.cuda.graph(torch.cuda.CUDAGraph()):
    touched.add_(1)
    try:
        opt.step()
    except RuntimeError as error:
        said = str(error)
assert "call optimizer.prepare() before the capture" in said, said
opt.step()
assert weight.tolist() == [-1.0] * 3
"""


def test_engine_first_asked_for_inside_a_capture_serves_after_it(cuda, engine):
    """In a new process, where no kernel is loaded yet."""
    command = [sys.executable, "-c", _FIRST_IN_A_CAPTURE, engine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
