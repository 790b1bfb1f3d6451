"""What ``doctor`` tries out: a few steps beside stock torch's, the same in a graph, a compiler."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fused_sched
from fused_sched import stock
from fused_sched.engines import use_engine

STEPS = 3
PEAK_LR = 0.01
SHAPES = ((1,), (), (5, 7), (4099,))
"""Of the params of a sanity step; the last takes more than one program of the launch."""

PARAM_TOLERANCE = 1e-6
"""float32 params below 1.1 round by 6e-8, twice a step, here and in stock torch: at most 7e-7."""
LR_TOLERANCE = 1e-12
"""Of the peak."""

Trained = tuple[Tensor, Tensor]
"""(all params at the end, lr after each step)."""


@dataclass(frozen=True)
class Check:
    """A few steps of one engine beside stock torch's.

    Attributes:
        param: largest difference of a param at the end, None if nothing was compared.
        lr: largest difference of lr after any step, relative to the peak; None likewise.
        error: what was raised, None if nothing was.
        skipped: why it was not tried, None if it was.
    """

    param: float | None = None
    lr: float | None = None
    error: str | None = None
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Whether rounding explains both differences; NaN it does not. Skipped is not failed."""
        if self.skipped is not None:
            return True
        if self.param is None or self.lr is None:
            return False
        return self.param <= PARAM_TOLERANCE and self.lr <= LR_TOLERANCE


# -- steps ---------------------------------------------------------------------------------------


def check_steps(device: torch.device, engine: str) -> Check:
    """STEPS steps of AdamW with OneCycleLR fused into it, beside stock torch's."""
    return _compare(device, engine, functools.partial(_train_ours, device, _step_by_step))


def check_capture(device: torch.device, engine: str) -> Check:
    """The same in a CUDA graph: one captured step, replayed STEPS times."""
    if device.type != "cuda":
        return Check(skipped=f"a CUDA graph holds no {device.type.upper()} tensors")
    if engine == "eager":
        return Check(skipped="stock torch's step takes its lr from the host, once for all replays")
    return _compare(device, engine, functools.partial(_train_ours, device, _replayed))


def _compare(device: torch.device, engine: str, train: Callable[[], Trained]) -> Check:
    try:
        with use_engine(engine):
            ours, our_lrs = train()
        theirs, their_lrs = _train_stock(device)
    except Exception as error:  # whatever an engine dies of is the finding
        return Check(error=f"{type(error).__name__}: {error}")
    return Check(_largest(ours - theirs), _largest(our_lrs - their_lrs) / PEAK_LR)


def _train_ours(device: torch.device, run: Callable[..., list[float]]) -> Trained:
    params, opt, sched = _pair(fused_sched.optim, fused_sched.lr_scheduler, device)
    fused_sched.fuse(opt, sched)
    lrs = run(params, opt, sched)
    return _ends(params), torch.tensor(lrs, dtype=torch.float64, device="cpu")


def _train_stock(device: torch.device) -> Trained:
    params, opt, sched = _pair(stock, stock, device)
    lrs = []
    for step in range(STEPS):
        _set_gradients(params, step)
        opt.step()
        sched.step()
        lrs.append(opt.param_groups[0]["lr"])
    return _ends(params), torch.tensor(lrs, dtype=torch.float64, device="cpu")


def _step_by_step(params: Sequence[Tensor], opt: Any, sched: Any) -> list[float]:
    lrs = []
    for step in range(STEPS):
        _set_gradients(params, step)
        opt.step()
        sched.step()
        lrs.append(opt.param_groups[0]["lr"])
    return lrs


def _replayed(params: Sequence[Tensor], opt: Any, _: Any) -> list[float]:
    _set_gradients(params, 0)
    opt.prepare()
    graph = new_graph()
    with capture(graph, params[0].device):
        opt.step()
    lrs = []
    for step in range(STEPS):
        _set_gradients(params, step)
        graph.replay()
        lrs.append(opt.param_groups[0]["lr"])
    return lrs


def new_graph() -> Any:
    """A graph to capture into."""
    return torch.cuda.CUDAGraph()


@contextmanager
def capture(graph: Any, device: torch.device) -> Iterator[None]:
    """Capture into a graph, on a stream of that device: torch's own lies on the first one used."""
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        yield


def _pair(optim: ModuleType, schedulers: ModuleType, device: torch.device) -> Any:
    """(params, optimizer, scheduler), from the same values every time."""
    params = [torch.nn.Parameter(_values(shape, seed=0).to(device)) for shape in SHAPES]
    opt = optim.AdamW(params, lr=PEAK_LR, weight_decay=0.1)
    return params, opt, schedulers.OneCycleLR(opt, max_lr=PEAK_LR, total_steps=10)


def _set_gradients(params: Sequence[Tensor], step: int) -> None:
    """A step's gradients, in the memory of the last ones: a graph reads them there."""
    for param in params:
        values = _values(param.shape, seed=1 + step)
        if param.grad is None:
            param.grad = values.to(param.device)
        else:
            param.grad.copy_(values)


def _values(shape: Sequence[int], seed: int) -> Tensor:
    """Between -1 and 1, the same ones every time."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.rand(shape, generator=generator, device="cpu") * 2 - 1


def _ends(params: Sequence[Tensor]) -> Tensor:
    return torch.cat([param.detach().flatten().cpu() for param in params])


def _largest(differences: Tensor) -> float:
    return differences.abs().max().item()


# -- compilers -----------------------------------------------------------------------------------


COMPILERS = {"C++": ("CXX", ("g++", "clang++"), "cpp"), "C": ("CC", ("gcc", "clang"), "c")}
"""Language -> variable that names the compiler, names to look for, suffix of a source."""


def compilers() -> dict[str, str]:
    """Whether each compiler makes an extension of Python, which is what the engines need of it."""
    return {language: _try_compiler(*facts) for language, facts in COMPILERS.items()}


def _try_compiler(variable: str, names: Sequence[str], suffix: str) -> str:
    found = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if not found:
        return f"none found ({', '.join(names)} or {variable})"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        return f"{found}, but Python.h is not installed (python3-dev)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, f"probe.{suffix}")
        source.write_text("#include <Python.h>\n")
        command = [*found.split(), f"-I{headers}", "-shared", "-fPIC", str(source)]
        return f"{found}, {_outcome([*command, '-o', f'{folder}/probe.so'])}"


def _outcome(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run: {error}"
    told = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
    return "compiles" if done.returncode == 0 else f"fails: {told}"
