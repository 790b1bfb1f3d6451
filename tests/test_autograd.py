"""What autograd learns of a step: a graph from before it is not backed through by mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from tests.training import FEW, OURS, case, named

STALE = "modified by an inplace operation"


def settled(opt: Any, engine: str) -> None:
    """Two full steps make the next one cached, on the engine that has cached launches."""
    for _ in range(4):
        opt.step()
    assert (opt._cached is not None) == (engine == "native")


def versions(params: list[Parameter]) -> list[int]:
    return [param._version for param in params]


def two() -> list[Parameter]:
    params = [Parameter(torch.ones(3)), Parameter(torch.ones(2))]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


@pytest.mark.parametrize("cached", [False, True], ids=["full", "cached"])
@pytest.mark.parametrize("row", **named(FEW))
def test_backward_through_a_graph_from_before_the_step_raises(row, cached, engine):
    params = two()
    opt = row.build(OURS, params)
    if cached:
        settled(opt, engine)
    loss = sum(param.square().sum() for param in params)
    opt.step()
    with pytest.raises(RuntimeError, match=STALE):
        loss.backward()


def test_generator_and_discriminator_step_in_torchs_order_only(engine):
    """As people write it by mistake: the discriminator steps between the generator's two passes."""
    torch.manual_seed(0)
    generator, critic = torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.Linear(3, 1))
    first = OURS.Adam(generator.parameters())
    second = OURS.Adam(critic.parameters())

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        fake = generator(torch.ones(4, 2))
        return critic(fake).mean(), critic(fake.detach()).square().mean()

    for _ in range(5):
        of_generator, of_critic = losses()
        of_critic.backward()
        of_generator.backward()
        first.step()
        second.step()
    of_generator, of_critic = losses()
    of_critic.backward()
    second.step()
    with pytest.raises(RuntimeError, match=STALE):
        of_generator.backward()


def test_only_params_with_a_gradient_are_written(engine):
    params = [*two(), Parameter(torch.ones(1))]  # the last one never has a gradient
    opt = OURS.Adam(params)
    settled(opt, engine)
    for grads in ([1, 1], [0, 1], [1, 0], [0, 0]):
        for param, has in zip(params, grads):
            param.grad = torch.ones_like(param) if has else None
        before = versions(params)
        opt.step()
        moved = [now > then for now, then in zip(versions(params), before)]
        assert moved == [*map(bool, grads), False]


def test_inference_tensors_step_as_torchs_do(engine):
    """They have no counter. Stock's step raises outside inference mode and works within it."""
    with torch.inference_mode():
        param = torch.ones(2)
        param.grad = torch.ones(2)
        opt = OURS.SGD([param], lr=0.5)
        for _ in range(4):
            opt.step()
        assert param.tolist() == [-1.0, -1.0]


def test_complex_and_gapped_params_are_noted_too(engine):
    gapped = torch.ones(4, 3)[:, :2].requires_grad_()
    whole = Parameter(torch.ones(2, dtype=torch.complex64))
    for param in (gapped, whole):
        param.grad = torch.ones_like(param)
    opt = case("SGD-momentum").build(OURS, [gapped, whole])
    opt.step()
    for param in (gapped, whole):
        loss = param.abs().square().sum()
        opt.step()
        with pytest.raises(RuntimeError, match=STALE):
            loss.backward()
