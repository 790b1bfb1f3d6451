"""Keys that a param group may lack: a rule's options that torch's groups know nothing of."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.optim import FusedOptimizer
from fused_sched.rules.reader import RuleError

ENGINES = ("eager", "native", "triton")


class Scaled(FusedOptimizer):
    """SGD times ``scale``, and with ``keep`` less the average of its gradients' signs."""

    states = {"kept": "keep"}
    optional = {"scale": 1.0, "keep": False}

    def __init__(self, params: Any, lr: float = 0.5, **options: Any):
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def coefficients(lr, scale, step):
        return (lr * scale,)

    @staticmethod
    def rule(p, g, kept, c):
        (rate,) = c
        return p - rate * g, kept + g


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fused_sched.use_engine(request.param):
        yield


def one(**options: Any) -> tuple[Scaled, Parameter]:
    param = Parameter(torch.zeros(3))
    return Scaled([param], **options), param


def step(opt: Scaled, param: Parameter) -> float:
    """How far a gradient of -1 moves the param."""
    before = param[0].item()
    param.grad = -torch.ones(3)
    opt.step()
    return param[0].item() - before


def test_they_are_keywords_and_in_the_groups_only_where_asked_for():
    assert {"lr"} == one()[0].param_groups[0].keys() - {"params"}
    assert {"lr"} == one(scale=1, keep=None)[0].param_groups[0].keys() - {"params"}
    opt, _ = one(scale=2.0)
    assert opt.param_groups[0]["scale"] == opt.defaults["scale"] == 2.0
    assert "keep" not in opt.param_groups[0]
    with pytest.raises(TypeError, match="other"):
        one(other=1)


def test_groups_have_their_own_and_later_ones_the_defaults(engine):
    first, second, third = (Parameter(torch.zeros(3)) for _ in range(3))
    opt = Scaled([{"params": [first], "scale": 4.0}, {"params": [second]}], scale=2.0)
    opt.add_param_group({"params": [third]})
    for param in (first, second, third):
        param.grad = -torch.ones(3)
    opt.step()
    assert [p[0].item() for p in (first, second, third)] == [2.0, 1.0, 1.0]


def test_they_come_change_and_go_between_steps(engine):
    opt, param = one()
    group = opt.param_groups[0]
    assert [step(opt, param), step(opt, param)] == [0.5, 0.5]
    group["scale"] = 4.0
    assert step(opt, param) == 2.0
    group["scale"] = None
    assert step(opt, param) == 0.5
    group["scale"] = 2.0
    assert [step(opt, param), step(opt, param), step(opt, param)] == [1.0, 1.0, 1.0]
    del group["scale"]
    assert step(opt, param) == 0.5 and "scale" not in group
    group["scale"] = 2.0
    assert group.pop("scale") == 2.0
    assert step(opt, param) == 0.5 and "scale" not in opt.param_groups[0]


def test_a_state_may_depend_on_one(engine):
    opt, param = one()
    step(opt, param)
    assert opt.state[param].keys() == {"step"}
    opt, param = one(keep=True)
    step(opt, param)
    step(opt, param)
    assert opt.state[param]["kept"].tolist() == [-2.0] * 3


def test_a_checkpoint_without_one_leaves_it_and_one_with_it_sets_it(engine):
    plain, param = one()
    step(plain, param)
    opt, mine = one(scale=2.0)
    step(opt, mine)
    opt.load_state_dict(plain.state_dict())
    assert opt.param_groups[0]["scale"] == 2.0 and step(opt, mine) == 1.0
    opt.param_groups[0]["scale"] = 4.0
    plain.load_state_dict(opt.state_dict())
    assert plain.param_groups[0]["scale"] == 4.0 and step(plain, param) == 2.0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_them(copied):
    opt, _ = one(scale=2.0)
    twin = copied(opt)
    (param,) = twin.param_groups[0]["params"]
    assert step(twin, param) == 1.0


@pytest.mark.parametrize("fused", [False, True])
def test_a_schedule_moves_one_that_is_there(engine, fused):
    opt, param = one(scale=4.0)
    sched = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5, hyper="scale")
    if fused:
        fused_sched.fuse(opt, sched)
    moved = []
    for _ in range(3):
        moved.append(step(opt, param))
        sched.step()
    assert moved == [2.0, 1.0, 0.5] and opt.param_groups[0]["scale"] == 0.5
    with pytest.raises(ValueError, match="hyper='scale' is not a number"):
        fused_sched.lr_scheduler.ExponentialLR(one()[0], 0.5, hyper="scale")


def test_one_that_nothing_reads_is_refused():
    with pytest.raises(RuleError, match="Odd.optional has 'scales', which neither its"):

        class Odd(Scaled):
            optional = {"scale": 1.0, "keep": False, "scales": 1.0}


def test_those_of_a_class_with_torchs_constructor_are_shown_after_torchs_arguments():
    class Halved(fused_sched.optim.SGD):
        optional = {"half": False}

        @staticmethod
        def coefficients(
            lr, momentum, dampening, weight_decay, nesterov, maximize, half, step
        ):  # fmt: skip
            sign = (1.0 - 2.0 * maximize) * (1.0 - 0.5 * half)
            return lr, weight_decay, momentum, 1.0 - dampening, nesterov, sign, step == 1

    shown = list(inspect.signature(Halved).parameters)
    assert shown == [*inspect.signature(torch.optim.SGD).parameters, "half"]
    param = Parameter(torch.zeros(3))
    assert step(Halved([param], lr=1.0, half=True), param) == 0.5


class Warming(FusedOptimizer):
    """Its key ends in a digit, and is no part of a tuple under ``phases``."""

    states = {"seen": True}
    optional = {"phase2": 3.0}

    def __init__(self, params: Any, lr: float = 1.0, **options: Any):
        super().__init__(params, {"lr": lr}, **options)

    @staticmethod
    def coefficients(lr, phase2, step):
        return (lr * phase2,)

    @staticmethod
    def rule(p, g, seen, c):
        (rate,) = c
        return p - rate * g, seen + g


def test_one_may_end_in_a_digit(engine):
    param = Parameter(torch.zeros(3))
    opt = Warming([param])
    assert step(opt, param) == 3.0
    opt.param_groups[0]["phase2"] = 2.0
    assert step(opt, param) == 2.0
    assert list(opt.state[param]) == ["step", "seen"]
