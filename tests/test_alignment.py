"""Where in memory tensors begin makes no difference to a step, and little to its accesses."""

from __future__ import annotations

import pytest
import torch

import fused_sched
from fused_sched.kernels import chunk
from fused_sched.tables import layout

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
NUMEL = 2 * layout.CHUNK_UNIT + 451
"""Three chunks; no multiple of a vector."""


def placed(values, phase):
    """The values in a view that begins ``phase`` elements into its memory."""
    memory = torch.full((values.numel() + phase,), float("nan"), dtype=values.dtype)
    assert memory.data_ptr() % 16 == 0
    return memory[phase:].copy_(values)


def stepped(dtype, phases, numel=NUMEL):
    """Param and state after two steps of Adam; phases are those of param, gradient and state."""
    generator = torch.Generator().manual_seed(0)
    values, first, second = (torch.randn(numel, generator=generator).to(dtype) for _ in range(3))
    param = torch.nn.Parameter(placed(values, phases[0]))
    opt = fused_sched.optim.Adam([param], lr=0.1)
    param.grad = placed(first, phases[1])
    opt.step()
    state = opt.state[param]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = placed(state[name], phases[2])
    param.grad = placed(second, phases[1])
    opt.step()
    return param.detach(), state["exp_avg"], state["exp_avg_sq"]


@pytest.mark.parametrize("phases", [(1, 1, 1), (3, 3, 3), (0, 1, 0), (1, 1, 0), (2, 3, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_is_the_same_wherever_its_tensors_begin(dtype, phases, launch_engine):
    for numel in (1, 5, NUMEL):
        expected = stepped(dtype, (0, 0, 0), numel)
        torch.testing.assert_close(stepped(dtype, phases, numel), expected, rtol=0, atol=0)


@pytest.fixture
def wide_only(monkeypatch):
    """The loop without vectors raises."""

    def refuse(*_):
        raise AssertionError("no vectors")

    monkeypatch.setattr(chunk, "_update_narrow", refuse)


def step_of_sgd(param_phase, grad_phase):
    param = torch.nn.Parameter(placed(torch.ones(1_100, dtype=torch.bfloat16), param_phase))
    param.grad = placed(torch.ones_like(param), grad_phase)
    with fused_sched.use_engine("triton"):
        fused_sched.optim.SGD([param], lr=0.5).step()
    assert (param == 0.5).all()


@pytest.mark.parametrize("phase", range(9))
def test_tensors_that_begin_alike_are_moved_in_vectors(phase, wide_only):
    step_of_sgd(phase, phase)


def test_the_test_of_vectors_notices_tensors_that_begin_otherwise(wide_only):
    with pytest.raises(Exception, match="no vectors"):
        step_of_sgd(0, 1)
