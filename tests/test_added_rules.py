"""The rules and options that torch lacks: what they refuse, and their edges."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched import optim
from tests.cases import OF_TORCH, OPTIMIZERS

ADDED = sorted({row.name for row in OPTIMIZERS} - {row.name for row in OF_TORCH})


def made(name: str, params: list[Any], **options: Any) -> Any:
    opt = getattr(optim, name)(params, **options)
    if hasattr(opt, "train"):  # it has two modes
        opt.train()
    return opt


def param() -> Parameter:
    one = Parameter(torch.ones(3))
    one.grad = torch.ones(3)
    return one


@pytest.mark.parametrize(
    "options, said",
    [
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"betas": (1.0, 0.9, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1, 0.9)}, "Invalid beta parameter at index 1: -0.1"),
        ({"weight_decay": -1.0}, "Invalid weight_decay value: -1.0"),
    ],
)
@pytest.mark.parametrize("name", ADDED)
def test_what_torchs_own_refuse_is_refused(name, options, said):
    if options.keys() <= inspect.signature(getattr(optim, name)).parameters.keys():
        with pytest.raises(ValueError, match=said):
            made(name, [param()], **options)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("Lion", {"lr": 0.0}, "Invalid learning rate: 0.0"),
    ("ADOPT", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
    ("ADOPT", {"clip_exp": -0.5}, "Invalid clip_exp value: -0.5"),
    ("ADOPT", {"cautious_weight_decay": True}, "pass decoupled=True"),
    ("AdEMAMix", {"alpha": -1.0}, "Invalid alpha value: -1.0"),
    ("AdEMAMix", {"t_alpha": -1}, "Invalid t_alpha value: -1"),
    ("AdEMAMix", {"t_beta3": -1}, "Invalid t_beta3 value: -1"),
    ("AdEMAMix", {"betas": (0.9, 0.99)}, r"param_group\['betas'\] has 2 values, not 3"),
    ("Adan", {"eps": -1.0}, "Invalid epsilon value: -1.0"),
]


@pytest.mark.parametrize("name, options, said", REFUSED)
def test_what_one_of_them_refuses(name, options, said):
    with pytest.raises(ValueError, match=said):
        made(name, [param()], **options).step()


def test_caution_of_coupled_decay_is_refused_of_a_later_group_which_is_not_added():
    opt = optim.ADOPT([param()])
    with pytest.raises(ValueError, match="pass decoupled=True"):
        opt.add_param_group({"params": [param()], "cautious_weight_decay": True})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [param()], "cautious_weight_decay": True, "decoupled": True})


@pytest.mark.parametrize("name", ADDED)
def test_sparse_gradients_are_refused(name):
    one = param()
    one.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=f"{name} has no form for sparse gradients"):
        made(name, [one]).step()


@pytest.mark.parametrize("engine", ["eager", "native", "triton"])
@pytest.mark.parametrize("name", ADDED)
def test_elements_without_a_gradient_stay(name, engine):
    """Zeros: sign(0) is 0, and nothing is divided by 0."""
    one = Parameter(torch.tensor([1.0, -2.0, 0.0]))
    with fused_sched.use_engine(engine):
        opt = made(name, [one], weight_decay=0.0)
        for _ in range(3):
            one.grad = torch.zeros(3)
            opt.step()
    assert one.tolist() == [1.0, -2.0, 0.0]


def test_a_slow_average_without_a_fast_one_warms_up():
    """beta1 = 0 has the half-life 0, where the other package's logarithm raises."""
    one = param()
    opt = optim.AdEMAMix([one], betas=(0.0, 0.99, 0.5), t_beta3=2)
    opt.step()
    # A quarter, as 1 / ln(b3) is halved at the first step; 0.5 from the second on.
    torch.testing.assert_close(opt.state[one]["exp_avg_slow"], torch.full((3,), 0.75))
    opt.step()
    torch.testing.assert_close(opt.state[one]["exp_avg_slow"], torch.full((3,), 0.875))


# -- cautious_weight_decay of torch's classes ----------------------------------------------------

COUPLED = ["Adam", "NAdam", "RAdam"]


@pytest.mark.parametrize("name", COUPLED)
def test_caution_of_coupled_decay_is_refused(name):
    with pytest.raises(ValueError, match="pass decoupled_weight_decay=True"):
        getattr(optim, name)([param()], cautious_weight_decay=True)
    getattr(optim, name)([param()], cautious_weight_decay=True, decoupled_weight_decay=True)


@pytest.mark.parametrize("name", ["AdamW", *COUPLED])
def test_without_caution_groups_and_checkpoints_are_torchs(name):
    ours, theirs = (getattr(module, name)([param()]) for module in (optim, torch.optim))
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    for opt in (ours, theirs):
        opt.step()
    saved = [opt.state_dict() for opt in (ours, theirs)]
    assert list(saved[0]["param_groups"][0]) == list(saved[1]["param_groups"][0])
    assert list(saved[0]["state"][0]) == list(saved[1]["state"][0])


@pytest.mark.parametrize("engine", ["eager", "native", "triton"])
def test_caution_leaves_out_what_the_update_enlarges(engine):
    """Of 2 and -2 the first is made smaller by its gradient, the second larger in size."""
    one = Parameter(torch.tensor([2.0, -2.0]))
    with fused_sched.use_engine(engine):
        opt = optim.AdamW([one], lr=0.5, weight_decay=0.5, cautious_weight_decay=True)
        one.grad = torch.ones(2)
        opt.step()
    torch.testing.assert_close(one.detach(), torch.tensor([2.0 * 0.75 - 0.5, -2.0 - 0.5]))


@pytest.mark.parametrize("engine", ["eager", "native", "triton"])
def test_caution_survives_a_checkpoint_of_torchs_and_reaches_torch(engine):
    theirs, ours = param(), param()
    stock = torch.optim.AdamW([theirs])
    stock.step()
    with fused_sched.use_engine(engine):
        opt = optim.AdamW([ours], cautious_weight_decay=True)
        opt.load_state_dict(stock.state_dict())
        assert opt.param_groups[0]["cautious_weight_decay"] is True
        opt.step()
        stock.load_state_dict(opt.state_dict())
    assert float(stock.state[theirs]["step"]) == 2.0
    stock.step()


def test_caution_and_a_step_of_torchs_that_autograd_records_are_refused():
    opt = optim.AdamW([param()], differentiable=True, cautious_weight_decay=True)
    with pytest.raises(RuntimeError, match="torch's own step, which knows no cautious_weight_deca"):
        opt.step()
