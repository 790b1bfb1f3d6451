"""``torch.set_default_device``: what the host keeps for itself stays on the CPU.

The default is ``meta`` here: a tensor that follows it holds no numbers. With ``cuda`` it could not
be page-locked, and the compiled engine would read an address of the GPU's.
"""

from __future__ import annotations

import ast
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.engines.native_library import kind_numbers
from fused_sched.runtime.device_state import _empty_table
from fused_sched.tables.device_buffer import _no_program
from fused_sched.tables.program import _nothing, table_of
from tests.cases import SCHEDULERS, plain_step
from tests.training import named

pytestmark = [
    pytest.mark.usefixtures("short_runs"),
    pytest.mark.filterwarnings("ignore:Detected call of:UserWarning"),
]

PACKAGE = Path(fused_sched.__file__).parent

MAKE_TENSORS = {
    *("arange", "asarray", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "zeros"),
}
"""torch's functions that ask for the default device where they are given none."""

CASES = [case for case in SCHEDULERS if case.advance is plain_step]
ONE_OF_EACH = list({case.name: case for case in reversed(CASES)}.values())
A_FEW = [case for case in ONE_OF_EACH if case.name in ("LambdaLR", "OneCycleLR", "SequentialLR")]


def _is_torchs(function: ast.expr) -> bool:
    """Whether it is ``torch.<one of MAKE_TENSORS>``."""
    if not isinstance(function, ast.Attribute) or function.attr not in MAKE_TENSORS:
        return False
    return isinstance(function.value, ast.Name) and function.value.id == "torch"


def _without_device(path: Path) -> list[str]:
    """Places that make a tensor on the default device."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        f"{path.relative_to(PACKAGE)}:{call.lineno} {ast.unparse(call)}"
        for call in calls
        if _is_torchs(call.func) and all(keyword.arg != "device" for keyword in call.keywords)
    ]


def test_every_tensor_is_made_on_a_device_that_is_named():
    assert [place for path in PACKAGE.rglob("*.py") for place in _without_device(path)] == []


@pytest.fixture
def nothing_made_before():
    """As in a process whose default device was set before its first optimizer."""
    for cached in (kind_numbers, table_of, _empty_table, _no_program, _nothing):
        cached.cache_clear()


def life(case: Any, fused: bool, name: str) -> list[Any]:
    """What is seen of an optimizer from its construction to the load of its checkpoint."""
    params = [
        Parameter(torch.linspace(0.1, 1.0, size, dtype=dtype, device="cpu"))
        for size, dtype in ((5, torch.float32), (3, torch.float64), (1030, torch.bfloat16))
    ]
    for number, param in enumerate(params):
        param.grad = torch.full_like(param, 0.25 + number)
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    opt = getattr(fused_sched.optim, name)(groups, lr=0.1)
    sched = case.build(fused_sched.lr_scheduler, opt)
    opt._ledger.mirror.host.schedules.tables = True  # as on CUDA
    seen: list[Any] = [sched.values(3)["lr"].tolist()]
    if fused:
        fused_sched.fuse(opt, sched)
    history = sched.history(10)
    opt.prepare()

    def steps() -> None:
        for _ in range(3):
            opt.step()
            sched.step()
            seen.append(sched.get_last_lr())

    steps()
    saved = deepcopy((opt.state_dict(), sched.state_dict()))
    opt.param_groups[1]["weight_decay"] = 0.5
    opt.param_groups[0]["lr"] = 0.3
    steps()
    opt.load_state_dict(saved[0])
    sched.load_state_dict(saved[1])
    steps()
    seen += [param.tolist() for param in params]
    seen += [float(entry["step"]) for entry in opt.state.values() if "step" in entry]
    return [*seen, {name: values.tolist() for name, values in history.drain().items()}]


def assert_same_life(case: Any, fused: bool, name: str) -> None:
    with torch.device("meta"):
        under_meta = life(case, fused, name)
    assert under_meta == life(case, fused, name)


@pytest.mark.parametrize("fused", [False, True], ids=["explicit", "fused"])
@pytest.mark.parametrize("case", **named(ONE_OF_EACH))
def test_life_of_an_optimizer_does_not_depend_on_it(case, fused, nothing_made_before):
    with fused_sched.use_engine("native"):
        assert_same_life(case, fused, "AdamW" if fused else "SGD")


@pytest.mark.parametrize("case", **named(A_FEW))
def test_life_on_triton_does_not_depend_on_it(case, nothing_made_before):
    with fused_sched.use_engine("triton"):
        assert_same_life(case, fused=True, name="AdamW")


def test_step_counts_that_are_plain_numbers_are_loaded_onto_the_cpu():
    """Of checkpoints by old versions of torch."""
    with torch.device("meta"):
        param = Parameter(torch.ones(3, device="cpu"))
        param.grad = torch.ones_like(param)
        opt = fused_sched.optim.AdamW([param])
        opt.step()
        saved = opt.state_dict()
        saved["state"][0]["step"] = 7
        opt.load_state_dict(saved)
        opt.step()
    assert float(opt.state[param]["step"]) == 8
