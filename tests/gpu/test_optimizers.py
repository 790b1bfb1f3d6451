"""Eager steps of every row of the optimizer table: against float64, and against torch fused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from tests.cases import (
    ERROR_RATIO,
    OPTIMIZERS,
    SHAPES,
    TOLERANCES,
    OptimizerCase,
    gradient,
)

STEPS, SIZE = (10, 100_003) if torch.cuda.is_available() else (2, 4_099)
"""On the CPU as much as the interpreter does in a second."""

REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ROUNDED = [torch.float32, torch.float16]
if torch.cuda.is_available():
    ROUNDED.append(torch.bfloat16)  # the interpreter truncates where the GPU rounds
COMBOS = [case for case in OPTIMIZERS if case.id.endswith("combo")]

Gradient = Callable[[Tensor, int], Tensor | None]


def over(cases: Sequence[OptimizerCase]):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


over_dtypes = pytest.mark.parametrize("dtype", [*REAL, torch.complex64, torch.complex128], ids=str)


def leaves(dtypes: Sequence[torch.dtype], device: torch.device) -> list[Tensor]:
    """Every shape in every dtype."""
    return [shape.build(dtype, str(device)).detach() for shape in SHAPES for dtype in dtypes]


def trained(
    case: OptimizerCase, module, params: Sequence[Tensor], grads: Gradient, **overrides
) -> list[Tensor]:
    """The params after STEPS steps."""
    own = [Parameter(param) for param in params]
    opt = case.build(module, own, **overrides)
    for step in range(STEPS):
        for param in own:
            param.grad = grads(param.detach(), step)
        opt.step()
    return [param.detach() for param in own]


def exact(case: OptimizerCase, params: Sequence[Tensor], grads: Gradient) -> list[Tensor]:
    """The same steps by stock torch in float64, from the same rounded numbers, on the CPU.

    Numbers that stock keeps in the default dtype, such as NAdam's product, are float64 too.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return _exact(case, params, grads)
    finally:
        torch.set_default_dtype(before)


def _exact(case: OptimizerCase, params: Sequence[Tensor], grads: Gradient) -> list[Tensor]:
    wide = [_wide(param) for param in params]
    narrow = {id(w): p for w, p in zip(wide, params, strict=True)}
    own = [Parameter(w) for w in wide]
    opt = case.build(torch.optim, own, foreach=False)
    for step in range(STEPS):
        for param, w in zip(own, wide, strict=True):
            grad = grads(narrow[id(w)], step)
            param.grad = None if grad is None else _wide(grad).reshape(param.shape)
        opt.step()
    return [param.detach() for param in own]


def _wide(tensor: Tensor) -> Tensor:
    dtype = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().cpu().to(dtype, copy=True)


def assert_close(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    for number, (mine, true) in enumerate(zip(ours, reference, strict=True)):
        allowed = TOLERANCES[mine.dtype]
        torch.testing.assert_close(
            _wide(mine),
            true,
            rtol=allowed.rtol,
            atol=allowed.atol,
            msg=lambda text, number=number, mine=mine: (
                f"param {number}, {tuple(mine.shape)} {mine.dtype}: {text}"
            ),
        )


@over_dtypes
@over(OPTIMIZERS)
def test_every_shape_equals_float64(case, dtype, device):
    params = leaves([dtype], device)
    reference = exact(case, [p.clone() for p in params], gradient)
    assert_close(trained(case, fused_sched.optim, params, gradient), reference)


@over(COMBOS)
def test_mixed_dtypes_in_one_group_equal_float64(case, device):
    params = leaves(REAL, device)
    reference = exact(case, [p.clone() for p in params], gradient)
    assert_close(trained(case, fused_sched.optim, params, gradient), reference)


def _now_and_then(param: Tensor, step: int) -> Tensor | None:
    return None if (step + param.numel()) % 3 == 1 else gradient(param, step)


def _strided(param: Tensor, step: int) -> Tensor:
    """The same values with the strides of another order of the dimensions, and gaps."""
    grad = gradient(param, step)
    if grad.dim() < 2:
        return torch.stack((grad, grad), dim=-1)[..., 0]
    return grad.transpose(0, 1).contiguous().transpose(0, 1)


def _expanded(param: Tensor, step: int) -> Tensor:
    """One number for all elements: every stride is 0."""
    return torch.tensor(0.5 + step, dtype=param.dtype, device=param.device).expand(param.shape)


def _misaligned(param: Tensor, step: int) -> Tensor:
    grad = gradient(param, step).contiguous()
    memory = grad.new_zeros(grad.numel() + 1)
    return memory[1:].view(grad.shape).copy_(grad)


@pytest.mark.parametrize("grads", [_now_and_then, _strided, _expanded, _misaligned])
@over(COMBOS)
def test_odd_gradients_equal_float64(case, grads, device):
    params = leaves([torch.float32], device)
    reference = exact(case, [p.clone() for p in params], grads)
    assert_close(trained(case, fused_sched.optim, params, grads), reference)


def quickest(case: OptimizerCase) -> dict[str, bool]:
    """torch's fastest step."""
    return {"fused" if case.takes("fused") else "foreach": True}


@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@over(OPTIMIZERS)
def test_error_is_at_most_twice_that_of_torch_fused(case, dtype, device):
    """Root mean square over a tensor large enough that chance plays no part."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(SIZE, generator=generator, dtype=torch.float64).to(dtype).to(device)
    true = exact(case, [start.clone()], gradient)[0]
    ours = trained(case, fused_sched.optim, [start.clone()], gradient)[0]
    fused = trained(case, torch.optim, [start.clone()], gradient, **quickest(case))[0]
    mine, theirs = (float((_wide(p) - true).norm()) for p in (ours, fused))
    floor = 1e-9 * float(true.norm())
    assert mine <= ERROR_RATIO * theirs + floor, (
        f"root mean square error {mine / SIZE**0.5:.3g}, torch fused has {theirs / SIZE**0.5:.3g}"
    )


@over(OPTIMIZERS)
def test_state_equals_torch_fused(case, device):
    """Keys, dtypes, shapes and values of ``opt.state``."""
    params = [torch.linspace(-1, 1, n, device=device) for n in (1, 2048, 4099)]
    states = []
    for module in (fused_sched.optim, torch.optim):
        own = [Parameter(p.clone()) for p in params]
        opt = case.build(module, own, **quickest(case))
        for step in range(3):
            for param in own:
                param.grad = gradient(param.detach(), step)
            opt.step()
        states.append([opt.state[param] for param in own])
    for mine, theirs in zip(*states, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(
                mine[key], value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )


LARGE = 2**31 if torch.cuda.is_available() else 2**13


def test_more_than_2_to_the_31_elements(device):
    """bfloat16 SGD without momentum, 4.3 GB and 4.3 GB; all numbers exact in bfloat16."""
    size = LARGE + 4_099
    places = [0, 1, size // 2, LARGE - 1, LARGE, LARGE + 1, size - 2, size - 1]
    param = Parameter(torch.ones(size, dtype=torch.bfloat16, device=device))
    param.grad = torch.full((size,), 0.25, dtype=torch.bfloat16, device=device)
    param.grad[places] = torch.arange(1, len(places) + 1, device=device).to(torch.bfloat16) / 16
    opt = fused_sched.optim.SGD([param], lr=0.5)
    fused_sched.fuse(opt, fused_sched.lr_scheduler.ExponentialLR(opt, gamma=0.5), interval=1)
    opt.step()
    opt.step()
    expected = [1 - 0.75 * (k + 1) / 16 for k in range(len(places))]
    assert param.detach()[places].tolist() == [_bfloat16(x) for x in expected]
    elsewhere = param.detach().clone()
    elsewhere[places] = 1 - 0.75 * 0.25
    wrong = sum(int((part != 1 - 0.75 * 0.25).sum()) for part in elsewhere.split(1 << 28))
    assert wrong == 0, f"{wrong} of {size} elements are wrong"


def _bfloat16(value: float) -> float:
    return float(torch.tensor(value).to(torch.bfloat16))
