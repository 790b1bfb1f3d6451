"""``fuse`` of a stock torch pair amid its run, also where its step counts lie on the GPU."""

from __future__ import annotations

import pytest
import torch

import fused_sched

from .training import ADAMW_ONE_CYCLE, Training, assert_same_params, assert_same_values

OPTIONS = ["fused", "capturable"] if torch.cuda.is_available() else ["fused"]
"""Either puts the step counts beside the params; a CPU has no ``capturable``."""


@pytest.mark.parametrize("option", OPTIONS)
def test_stock_pair_with_step_counts_on_the_device_is_fused_and_captured(option, device):
    ours, stock = (
        Training(ADAMW_ONE_CYCLE, torch, device, torch.float64, **{option: True}) for _ in range(2)
    )
    for _ in range(3):
        ours.iteration()
        stock.iteration()
    fused_sched.fuse(ours.opt, ours.sched)
    assert isinstance(ours.opt, fused_sched.optim.AdamW)
    ours.warm_up()
    stock.warm_up()
    assert_same_values(ours, stock, "after the conversion")
    graph = ours.capture()
    for replay in range(4):
        ours.replay(graph)
        stock.iteration()
        assert_same_values(ours, stock, f"after replay {replay + 1}")
    assert ours.steps() == stock.steps()
    assert {entry["step"].device for entry in ours.opt.state.values()} == {device}
    assert_same_params(ours, stock, torch.float64, "after 4 replays")
