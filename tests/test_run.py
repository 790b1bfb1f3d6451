"""``python -m fused_sched run``: scripts written as others write them, none of them changed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "scripts"


def python(*args: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """A fresh interpreter, on the compiled engine."""
    env = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def run(*args: Any, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return python("-m", "fused_sched", "run", *args, cwd=cwd)


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
def test_a_script_ends_where_stock_ends_and_saves_the_same(name, arguments, saved, tmp_path):
    outcomes = []
    for side, start in (("stock", python), ("ours", run)):
        (tmp_path / side).mkdir()
        given = [argument.format(folder=tmp_path / side) for argument in arguments]
        done = start(SCRIPTS / name, *given)
        assert done.returncode == 0, done.stderr
        outcomes.append((done.stdout, torch.load(tmp_path / side / saved)))
    (text, stock), (our_text, ours) = outcomes
    assert our_text == text
    assert ours.keys() == stock.keys()
    torch.testing.assert_close(ours["model"], stock["model"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        ours["optimizer"]["state"], stock["optimizer"]["state"], rtol=1e-3, atol=1e-4
    )
    assert [g.keys() for g in ours["optimizer"]["param_groups"]] == [
        g.keys() for g in stock["optimizer"]["param_groups"]
    ]


def test_a_checkpoint_of_stock_is_resumed(tmp_path):
    output = tmp_path / "it.pt"
    python(SCRIPTS / "classification.py", "--epochs", 6, "--output", output)
    whole = torch.load(output)
    done = python(SCRIPTS / "classification.py", "--epochs", 6, "--output", tmp_path / "one.pt")
    assert done.returncode == 0
    half = tmp_path / "half.pt"
    script = (SCRIPTS / "classification.py").read_text(encoding="utf-8")
    stopped = tmp_path / "stopped.py"
    stopped.write_text(script.replace("range(start_epoch, args.epochs)", "range(3)"))
    assert python(stopped, "--output", half).returncode == 0
    done = run(SCRIPTS / "classification.py", "--resume", half, "--output", output)
    assert done.returncode == 0, done.stderr
    resumed = torch.load(output)
    torch.testing.assert_close(resumed["model"], whole["model"], rtol=1e-4, atol=1e-5)
    assert resumed["lr_scheduler"]["last_epoch"] == whole["lr_scheduler"]["last_epoch"]


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


def test_a_folder_with_a_main_runs(script):
    path = script(SHOW, "folder/__main__.py").parent
    assert run(path, 1).stdout == python(path, 1).stdout


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('enough')", 1, "enough"),
        ("raise ValueError('bad batch')", 1, "ValueError: bad batch"),
        ("import no_such_module", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("open('/no/such/file')", 1, "FileNotFoundError: [Errno 2] No such file or directory"),
        ("if", 1, "SyntaxError: invalid syntax"),
    ],
)
def test_exit_status_and_traceback_are_the_scripts(script, end, status, last):
    done = run(script(end))
    assert done.returncode == status
    assert last in done.stderr
    assert "fused_sched" not in done.stderr  # none of our frames


def test_a_missing_script_is_said_in_one_line():
    done = run("no/such/script.py")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "no/such/script.py" in done.stderr


def test_what_a_script_leaves_for_the_end_of_the_process_finds_its_main(script):
    text = """
        import atexit, pickle

        class Kept:
            pass

        atexit.register(lambda: print(type(pickle.loads(pickle.dumps(Kept()))).__name__))
    """
    assert run(script(text)).stdout == "Kept\n"


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


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_of_the_script_have_the_names_swapped(script, method):
    done = run(script(SPAWN.replace("{method}", method)))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 fused_sched.optim.adam\n"


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_data_loader_workers_work(method):
    done = run(SCRIPTS / "classification.py", "--epochs=3", "-j1", f"--start-method={method}")
    assert done.returncode == 0, done.stderr
    assert "Epoch: [2] lr: " in done.stdout


# -- --explain and --fuse ------------------------------------------------------------------------


def test_explain_says_what_was_swapped_and_made(script):
    done = run("--explain", script(TRAIN + "\n    train(4)\n"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    text = done.stderr
    assert "torch.optim: Adam AdamW SGD, torch.optim.lr_scheduler: ChainedScheduler" in text
    assert "made of them: 1 AdamW, 1 StepLR" in text
    assert "optimizer 1, AdamW:" in text
    assert "schedules by themselves: StepLR" in text


def test_explain_is_said_after_an_error_too(script):
    done = run("--explain", script(TRAIN + "\n    train(4)\n    1 / 0\n"))
    assert done.returncode == 1
    assert done.stderr.index("ZeroDivisionError") < done.stderr.index("made of them: 1 AdamW")


def test_fuse_fuses_what_steps_by_itself(script):
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
    done = run("--fuse", "--explain", path)
    assert done.returncode == 0, done.stderr
    assert "schedules in the launch: SequentialLR\n" in done.stderr
    assert "schedules by themselves: none" in done.stderr
    assert done.stdout == python(path).stdout


def test_fuse_leaves_a_plateau_and_says_what_it_could_not_fuse(script):
    text = (
        TRAIN
        + """
    class Halving(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            return [group["lr"] / 2 for group in self.optimizer.param_groups]

    class Mine(torch.optim.lr_scheduler.StepLR):
        def step(self, epoch=None):
            super().step()

    def plateau(opt):
        made = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
        step = made.step
        made.step = lambda: step(1.0)
        return made

    train(3, lambda opt: Mine(opt, 2))
    print(f"{train(4, plateau)[2].get_last_lr()[0]}")
    """
    )
    done = run("--fuse", "--explain", script(text))
    assert done.returncode == 0, done.stderr
    assert "Mine was not fused: Mine overrides step()" in done.stderr
    assert "schedules by themselves: ReduceLROnPlateau" in done.stderr


def test_fuse_takes_schedulers_made_in_the_middle(script):
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
    done = run("--fuse", "--explain", path)
    assert done.returncode == 0, done.stderr
    assert "schedules in the launch: StepLR, SWALR\n" in done.stderr
    assert done.stdout == python(path).stdout


# -- --compare -----------------------------------------------------------------------------------


def differences(text: str) -> dict[str, float]:
    found = re.findall(r"^(params|lr): (?:largest difference (\S+)|no difference)", text, re.M)
    return {what: float(size.rstrip(",") or 0.0) for what, size in found}


@pytest.mark.parametrize("options", [[], ["--fuse"]], ids=["explicit", "fused"])
def test_compare_finds_no_difference_where_there_is_none(script, options):
    path = script(TRAIN + "\n    train(60)\n    print('not printed')\n")
    done = run("--compare", 20, *options, path)
    assert done.returncode == 0, done.stderr
    assert "20 optimizer steps compared with stock torch's" in done.stdout
    found = differences(done.stdout)
    assert found["params"] <= 1e-6 and found["lr"] <= 1e-12
    assert re.search(r"median of 20: stock [\d.]+ us, fused_sched [\d.]+ us", done.stdout)
    assert "not printed" not in done.stdout


def test_compare_finds_a_difference(script):
    """A script that does something else with ours than with torch's."""
    text = (
        TRAIN
        + """
    theirs = torch.optim.AdamW.__module__.startswith("torch.")
    train(8, lambda opt: torch.optim.lr_scheduler.StepLR(opt, 3, gamma=0.1 if theirs else 0.2))
    """
    )
    done = run("--compare", 5, script(text))
    found = differences(done.stdout)
    assert found["lr"] == pytest.approx(0.01) and found["params"] > 1e-3
    assert "step 4, AdamW 1" in done.stdout or "step 5, AdamW 1" in done.stdout
    assert "time of opt.step()" in done.stdout


def test_compare_says_that_the_script_failed(script):
    done = run("--compare", 5, script("raise SystemExit('no data')"))
    assert done.returncode == 1
    assert "no data" in done.stderr and "on the side stock" in done.stderr


def test_compare_says_that_there_was_no_step(script):
    done = run("--compare", 5, script("pass"))
    assert done.returncode == 0
    assert "nothing to compare" in done.stdout
