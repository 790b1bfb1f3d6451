"""``python -m fused_sched run``: scripts written as others write them, none of them changed."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

import fused_sched
from fused_sched import cli
from fused_sched.cli.compare import report
from fused_sched.cli.script import execute
from fused_sched.runtime.base import FusedOptimizer
from fused_sched.schedules.base import DeviceScheduler
from fused_sched.swap import OPTIMIZERS
from tests.twins import assert_same

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "scripts"


def python(*args: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """A fresh interpreter, on the compiled engine."""
    env = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def run(*args: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return python("-m", "fused_sched", "run", *args, cwd=cwd)


@dataclass
class Done:
    """What a script did in this process."""

    status: Any
    stdout: str
    stderr: str


@pytest.fixture
def here(monkeypatch, capsys):
    """Starts scripts in this process, which is afterwards what it was: ``here(stock, *argv)``."""

    def start(stock: bool, *args: Any) -> Done:
        given = [str(arg) for arg in args]
        with monkeypatch.context() as kept, fused_sched.use_engine("native"):
            kept.setattr(sys, "argv", sys.argv)
            kept.setattr(sys, "path", [*sys.path])
            kept.setitem(sys.modules, "__main__", sys.modules["__main__"])
            kept.setattr(FusedOptimizer, "__init__", FusedOptimizer.__init__)
            kept.setattr(DeviceScheduler, "_enroll", DeviceScheduler._enroll)
            kept.setattr(spawn, "get_preparation_data", spawn.get_preparation_data)
            with fused_sched.swap() as swap:
                places = [name.rpartition(".") for name in swap.names]
            for module, _, name in places:
                kept.setattr(sys.modules[module], name, getattr(sys.modules[module], name))
            torch.manual_seed(0)
            try:
                status = execute(given[0], given[1:], False) if stock else cli.main(["run", *given])
            except SystemExit as error:
                status = error.code
        return Done(status, *capsys.readouterr())

    return start


@pytest.fixture
def script(tmp_path):
    """Writes a script; returns its path."""

    def write(text: str, name: str = "script.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return write


TRAIN = """
    import torch

    def train(steps, make=lambda opt: torch.optim.lr_scheduler.StepLR(opt, 3)):
        param = torch.nn.Parameter(torch.ones(4))
        opt = torch.optim.AdamW([param], lr=0.1)
        sched = make(opt)
        for _ in range(steps):
            param.grad = param.detach() + 1
            opt.step()
            sched.step()
        return param, opt, sched
"""

# -- whole scripts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "saved"),
    [
        ("nano_gpt.py", ["--max_iters=20", "--out_dir={folder}"], "ckpt.pt"),
        ("ppo.py", ["--no-anneal-lr", "--num-iterations", "3", "--save={folder}/it.pt"], "it.pt"),
        ("classification.py", ["--amp", "--output={folder}/it.pt"], "it.pt"),
    ],
    ids=["nano_gpt", "ppo", "classification"],
)
def test_a_script_ends_where_stock_ends_and_saves_the_same(name, arguments, saved, here, tmp_path):
    outcomes = []
    for side in ("stock", "ours"):
        (tmp_path / side).mkdir()
        given = [argument.format(folder=tmp_path / side) for argument in arguments]
        done = here(side == "stock", SCRIPTS / name, *given)
        assert done.status == 0, done.stderr
        outcomes.append((done.stdout, torch.load(tmp_path / side / saved)))
    (text, stock), (our_text, ours) = outcomes
    assert our_text == text
    assert_same_training(ours, stock)


def test_a_checkpoint_of_stock_is_resumed(here, tmp_path):
    name, whole, half = SCRIPTS / "classification.py", tmp_path / "whole.pt", tmp_path / "half.pt"
    assert here(True, name, "--epochs=6", "--output", whole).status == 0
    assert here(True, name, "--epochs=6", "--stop-after=3", "--output", half).status == 0
    done = here(False, "--fuse", name, "--epochs=6", "--resume", half, "--output", half)
    assert done.status == 0 and done.stdout.startswith("Epoch: [3]")
    assert_same_training(torch.load(half), torch.load(whole))


def assert_same_training(ours: dict[str, Any], stock: dict[str, Any]) -> None:
    """Two checkpoints with the same keys and, within what 30 steps add up, values."""
    assert ours.keys() == stock.keys()
    torch.testing.assert_close(ours["model"], stock["model"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours["optimizer"]["state"], stock["optimizer"]["state"], rtol=1e-3, atol=1e-4
    )
    for mine, theirs in zip(ours["optimizer"]["param_groups"], stock["optimizer"]["param_groups"]):
        assert_same(mine, theirs)
    assert_same(ours.get("lr_scheduler"), stock.get("lr_scheduler"))


# -- as Python itself would ----------------------------------------------------------------------

SHOW = """
    import sys

    import torch

    print([argument.rpartition("/")[2] for argument in sys.argv])
    print(__name__, __package__, __spec__ and __spec__.name, __file__, __doc__)
    print(sys.path[0])
    print(sys.modules["__main__"].__dict__ is globals())
"""


@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
def test_argv_path_and_main_are_pythons(script, module):
    path = script(SHOW, "package/show.py")
    arguments = ["-m", "package.show"] if module else [path]
    arguments += ["--fuse", "-x", "--", "-m", "a b"]
    folder = path.parent.parent
    ours = run(*arguments, cwd=folder)
    assert ours.returncode == 0, ours.stderr
    assert ours.stdout == python(*arguments, cwd=folder).stdout


def test_a_folder_with_a_main_runs(script, here):
    text = "import sys; print(sys.argv, sys.path[0], __name__)"
    path = script(text, "folder/__main__.py").parent
    done = here(False, path, 1)
    assert (done.status, done.stdout) == (0, f"{[str(path), '1']} {path} __main__\n")


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('enough')", "enough", ""),
        ("raise ValueError('bad batch')", 1, "ValueError: bad batch"),
        ("import no_such_module", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("open('/no/such/file')", 1, "FileNotFoundError: [Errno 2] No such file or directory"),
        ("if", 1, "SyntaxError: invalid syntax"),
    ],
)
def test_exit_status_and_traceback_are_the_scripts(script, here, end, status, last):
    done = here(False, script(end))
    assert done.status == status
    assert last in done.stderr
    assert "fused_sched" not in done.stderr  # none of our frames


def test_status_and_end_of_the_process_are_the_scripts(script):
    text = """
        import atexit, pickle

        class Kept:
            pass

        atexit.register(lambda: print(type(pickle.loads(pickle.dumps(Kept()))).__name__))
        raise ValueError("bad batch")
    """
    done = run(script(text))
    assert (done.returncode, done.stdout) == (1, "Kept\n")
    assert done.stderr.endswith("ValueError: bad batch\n") and "fused_sched" not in done.stderr


def test_a_missing_script_is_said_in_one_line(here):
    done = here(False, "no/such/script.py")
    assert done.status == 2
    assert len(done.stderr.splitlines()) == 1 and "no/such/script.py" in done.stderr


# -- other processes -----------------------------------------------------------------------------

SPAWN = """
    import torch
    import torch.multiprocessing as mp

    def child(rank):
        param = torch.nn.Parameter(torch.ones(2))
        print(rank, type(torch.optim.AdamW([param])).__module__, flush=True)

    if __name__ == "__main__":
        mp.start_processes(child, nprocs=1, start_method="{method}")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_the_script_have_the_names_swapped(script, method):
    done = run(script(SPAWN.replace("{method}", method)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 fused_sched.optim.adam\n"


def test_data_loader_workers_work():
    done = run(SCRIPTS / "classification.py", "--stop-after=1", "-j1", "--start-method=spawn")
    assert done.returncode == 0, done.stderr
    assert "Epoch: [0] lr: " in done.stdout


# -- --explain and --fuse ------------------------------------------------------------------------


def test_explain_says_what_was_swapped_and_made(script, here):
    done = here(False, "--explain", script(TRAIN + "\n    train(4)\n"))
    assert done.status == 0, done.stderr
    assert done.stdout == ""
    text = done.stderr
    names = " ".join(sorted(cls.__name__ for cls in OPTIMIZERS.values()))
    assert f"torch.optim: {names}, torch.optim.lr_scheduler: ChainedScheduler" in text
    assert "made of them: 1 AdamW, 1 StepLR" in text
    assert "optimizer 1, AdamW:" in text
    assert "schedules by themselves: StepLR" in text


def test_explain_is_said_after_an_error_too(script, here):
    done = here(False, "--explain", script(TRAIN + "\n    train(4)\n    1 / 0\n"))
    assert done.status == 1
    assert done.stderr.index("ZeroDivisionError") < done.stderr.index("made of them: 1 AdamW")


def test_fuse_fuses_what_steps_by_itself(script, here):
    text = (
        TRAIN
        + """
    def warmup(opt):
        module = torch.optim.lr_scheduler
        parts = [module.LinearLR(opt, 0.1, total_iters=2), module.ExponentialLR(opt, 0.9)]
        return module.SequentialLR(opt, parts, milestones=[2])

    param, opt, sched = train(6, warmup)
    print(f"{sched.get_last_lr()[0]:.9f} {param[0].item():.5f}")
    """
    )
    path = script(text)
    done = here(False, "--fuse", "--explain", path)
    assert done.status == 0, done.stderr
    assert "schedules in the launch: SequentialLR\n" in done.stderr
    assert "schedules by themselves: none" in done.stderr
    assert done.stdout == here(True, path).stdout


def test_fuse_leaves_a_plateau_and_says_what_it_could_not_fuse(script, here):
    text = (
        TRAIN
        + """
    class Mine(torch.optim.lr_scheduler.StepLR):
        def step(self, epoch=None):
            super().step()

    def plateau(opt):
        made = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
        step = made.step
        made.step = lambda: step(1.0)
        return made

    train(3, lambda opt: Mine(opt, 2))
    torch.optim.lr_scheduler.StepLR(torch.optim.SparseAdam([torch.ones(1)]), 3)
    print(f"{train(4, plateau)[2].get_last_lr()[0]}")
    """
    )
    done = here(False, "--fuse", "--explain", script(text))
    assert done.status == 0, done.stderr
    assert "Mine was not fused: Mine overrides step()" in done.stderr
    assert "StepLR was not fused: it is built on a SparseAdam" in done.stderr
    assert "schedules by themselves: ReduceLROnPlateau" in done.stderr


def test_fuse_takes_schedulers_made_in_the_middle(script, here):
    text = (
        TRAIN
        + """
    param, opt, sched = train(3)
    swa = torch.optim.swa_utils.SWALR(opt, swa_lr=0.05, anneal_epochs=2)
    for _ in range(3):
        param.grad = torch.ones(4)
        opt.step()
        swa.step()
    print(f"{opt.param_groups[0]['lr']:.9f} {param[0].item():.5f}")
    """
    )
    path = script(text)
    done = here(False, "--fuse", "--explain", path)
    assert done.status == 0, done.stderr
    assert "schedules in the launch: StepLR, SWALR\n" in done.stderr
    assert done.stdout == here(True, path).stdout


# -- --compare -----------------------------------------------------------------------------------


def differences(text: str) -> dict[str, float]:
    found = re.findall(r"^(params|lr): (?:largest difference (\S+)|no difference)", text, re.M)
    return {what: float(size.rstrip(",") or 0.0) for what, size in found}


def test_compare_finds_no_difference_where_there_is_none(script, here, monkeypatch):
    monkeypatch.setenv("FUSED_SCHED_ENGINE", "native")
    path = script(TRAIN + "\n    train(60)\n    print('not printed')\n")
    done = here(False, "--compare", 20, "--fuse", path)
    assert done.status == 0, done.stderr
    assert "20 optimizer steps compared with stock torch's" in done.stdout
    found = differences(done.stdout)
    assert found["params"] <= 1e-6 and found["lr"] <= 1e-12
    assert re.search(r"median of 20: stock [\d.]+ us, fused_sched [\d.]+ us", done.stdout)
    assert "not printed" not in done.stdout


def test_compare_says_that_the_script_failed(script, here):
    done = here(False, "--compare", 5, script("raise SystemExit('no data')"))
    assert done.status == 1
    assert "no data" in done.stderr and "on the side stock" in done.stderr


def side(steps: int, move: float = 0.0, lr: float = 0.1, params: int = 1) -> dict[str, Any]:
    """A record of one param group of two-element params; the last step is off by ``move``."""
    values = [
        {
            "optimizer": "SGD 1",
            "lr": torch.tensor([lr]),
            "params": [[torch.ones(2) + move * (step == steps - 1)] * params],
        }
        for step in range(steps)
    ]
    return {"values": values, "seconds": [1e-4, 3e-4, 2e-4]}


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        (side(4, 0.5), "params: largest difference 5.0e-01, beside values up to 1.0e+00 (step 4"),
        (side(4, math.nan), "params: largest difference inf"),
        (side(4, lr=0.3), "lr: largest difference 2.0e-01, beside values up to 1.0e-01 (step 1"),
        (side(3), "stock made 4 steps, fused_sched 3"),
        (side(4, params=2), "step 1 steps other params than stock's"),
        (side(4), "params: no difference\nlr: no difference\n"),
        (side(4), "median of 3: stock 200.0 us, fused_sched 200.0 us"),
        (side(4) | {"seconds": []}, "the script ended before a step could be timed"),
        (side(0), "there is nothing to compare"),
    ],
)
def test_compare_reports(ours, told):
    assert told in report(side(4), ours)
