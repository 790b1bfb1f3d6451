"""Param groups: dicts to every reader, whose writes reach the device at once."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_sched
from tests.training import (
    FEW,
    OURS,
    STEPS,
    check,
    named,
    pair,
    set_grads,
    three,
    train,
)

LR = 1.0


@pytest.fixture
def ahead(engine):
    """An optimizer whose fused schedule has moved twice without anybody looking: lr is LR / 4."""
    params = three()
    opt = OURS.SGD(params, lr=LR, momentum=0.9)
    schedule = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, schedule, interval=1)
    train(opt, params, range(2))
    opt.keep = schedule
    return opt


def record(opt: Any, name: str, group: int = 0) -> list[float]:
    """Both halves of the device's record, of every device_state."""
    column = opt._ledger.mirror.host.schedules.columns.index(name)
    blocks = [
        device_state.buffer for device_state in opt._ledger.mirror.host.device_states.values()
    ]
    return [value for buffer in blocks for value in buffer.record[:, column, group].tolist()]


# -- reading -------------------------------------------------------------------------------------


def by_json(group: Any) -> Any:
    return json.loads(json.dumps({k: v for k, v in group.items() if k != "params"}))


def by_popping_params(group: Any) -> Any:
    plain = dict(group)
    plain.pop("params")
    return json.loads(json.dumps(plain))


READS: dict[str, Callable[[Any], Any]] = {
    "[]": lambda g: {"lr": g["lr"]},
    "get": lambda g: {"lr": g.get("lr")},
    "get with default": lambda g: {"lr": g.get("lr", None)},
    "dict": dict,
    "**": lambda g: {**g},
    "dict(**)": lambda g: dict(**g),
    "items": lambda g: dict(g.items()),
    "values": lambda g: {"lr": list(g.values())[list(g).index("lr")]},
    "comprehension": lambda g: {key: g[key] for key in g},
    "copy": lambda g: g.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
    "|": lambda g: g | {"other": 1},
    "reversed |": lambda g: {"other": 1} | g,
    "json": by_json,
    "json of dict": by_popping_params,
    "setdefault": lambda g: {"lr": g.setdefault("lr", 7.0)},
    "dict.update": lambda g: _updated(g),
    "repr": lambda g: {"lr": LR / 4} if "'lr': 0.25" in repr(g) else {"lr": repr(g)},
    "==": lambda g: {"lr": LR / 4} if g == dict(g) and g != {**g, "lr": 7.0} else {"lr": None},
}


def _updated(group: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    plain.update(group)
    return plain


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_reads_are_current_and_plain(read, ahead):
    result = read(ahead.param_groups[0])
    assert type(result) is dict
    assert type(result["lr"]) is float
    assert result["lr"] == LR / 4


def test_the_first_read_after_steps_is_current(ahead):
    """Each of them as the first one."""
    assert ahead.state_dict()["param_groups"][0]["lr"] == LR / 4
    assert f"lr: {LR / 4}" in repr(ahead)
    assert ahead.keep.get_last_lr() == [LR / 4]


def test_missing_keys_are_missing(engine):
    group = OURS.SGD(three(), lr=LR).param_groups[0]
    with pytest.raises(KeyError):
        group["other"]
    with pytest.raises(KeyError):
        group.pop("other")
    with pytest.raises(KeyError):
        del group["other"]
    assert group.pop("other", 3) == 3
    assert group.get("other") is None
    assert "other" not in group


def test_copies_do_not_write_to_the_original(ahead):
    for duplicate in (copy.copy, copy.deepcopy, dict, lambda g: g.copy(), lambda g: g | {}):
        other = duplicate(ahead.param_groups[0])
        other["lr"] = 7.0
        assert ahead.param_groups[0]["lr"] == LR / 4
        assert 7.0 not in record(ahead, "lr")


# -- writing -------------------------------------------------------------------------------------


def by_or(group: Any, key: str, value: Any) -> None:
    group |= {key: value}


WRITES: dict[str, Callable[[Any, str, Any], Any]] = {
    "[]": lambda g, key, value: g.__setitem__(key, value),
    "update": lambda g, key, value: g.update({key: value}),
    "update by name": lambda g, key, value: g.update(**{key: value}),
    "update by pairs": lambda g, key, value: g.update([(key, value)]),
    "|=": by_or,
    "pop and setdefault": lambda g, key, value: (g.pop(key), g.setdefault(key, value)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_writes_reach_both_halves_at_once(write, launch_engine):
    params = three()
    opt = OURS.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=LR, momentum=0.9)
    train(opt, params, range(1))
    write(opt.param_groups[1], "lr", 0.125)
    write(opt.param_groups[1], "weight_decay", 0.5)
    assert record(opt, "lr", 1) == [0.125] * 2
    assert record(opt, "weight_decay", 1) == [0.5] * 2
    assert record(opt, "lr", 0) == [LR] * 2
    assert record(opt, "momentum", 1) == [0.9] * 2


def test_betas_bring_their_logarithms(launch_engine):
    params = three()
    opt = OURS.Adam(params)
    train(opt, params, range(1))
    opt.param_groups[0]["betas"] = (0.5, 0.0)
    assert record(opt, "beta1") == [0.5] * 2
    assert record(opt, "log_beta1") == pytest.approx([-0.6931471805599453] * 2, rel=1e-15)
    assert record(opt, "log_beta2") == [float("-inf")] * 2


def test_writes_build_on_what_the_schedule_did(ahead):
    """The edit of one value leaves the schedule where it is."""
    group = ahead.param_groups[0]
    group["momentum"] = 0.5
    assert group["lr"] == LR / 4
    group["lr"] = 8.0
    train(ahead, group["params"], range(2, 4))
    assert group["lr"] == 2.0
    assert ahead.keep.last_epoch == 4


@pytest.mark.parametrize("value", ["fast", None, [1.0, 2.0]], ids=str)
def test_values_that_are_no_numbers_raise_and_change_nothing(value, launch_engine):
    params = three()
    opt = OURS.SGD(params, lr=LR)
    train(opt, params, range(1))
    with pytest.raises((TypeError, ValueError)):
        opt.param_groups[0]["lr"] = value
    assert opt.param_groups[0]["lr"] == LR
    assert record(opt, "lr") == [LR] * 2


def test_other_keys_are_the_users_own(ahead):
    group = ahead.param_groups[0]
    group["name"] = "head"
    assert group["name"] == "head"
    assert ahead.state_dict()["param_groups"][0]["name"] == "head"
    assert group["lr"] == LR / 4
    del group["name"]
    assert "name" not in group


def test_a_group_outlives_its_optimizer(engine):
    params = three()
    opt = OURS.SGD(params, lr=LR)
    train(opt, params, range(1))
    group = opt.param_groups[0]
    del opt
    group["lr"] = 0.5
    assert group["lr"] == 0.5


# -- groups in other hands -----------------------------------------------------------------------


def replaced_in_the_list(opt: Any, **values: Any) -> None:
    opt.param_groups[0] = {**opt.param_groups[0], **values}


def replaced_list(opt: Any, **values: Any) -> None:
    opt.param_groups = [dict(group) | values for group in opt.param_groups]


def deepcopied_values(opt: Any, **values: Any) -> None:
    """As Accelerate does it: everything but the params is a copy."""
    opt.param_groups = [
        {k: v if k == "params" else copy.deepcopy(v) for k, v in group.items()} | values
        for group in opt.param_groups
    ]


def loaded(opt: Any, **values: Any) -> None:
    """As Accelerate's prepare() does it."""
    saved = opt.state_dict()
    saved["param_groups"][0] |= values
    opt.load_state_dict(saved)


ADOPTIONS = [replaced_in_the_list, replaced_list, deepcopied_values, loaded]


@pytest.mark.parametrize("change", **named(ADOPTIONS))
@pytest.mark.parametrize("row", **named(FEW))
def test_plain_groups_are_adopted(row, change, engine):
    opt, ours, reference, theirs = pair(row, three)
    for one, params in ((opt, ours), (reference, theirs)):
        train(one, params, range(2))
        change(one, lr=0.25)
        train(one, params, range(2, 4))
        one.param_groups[0]["lr"] = 0.125
        train(one, params, range(4, 5))
    check(ours, theirs)


@pytest.mark.parametrize("change", **named(ADOPTIONS))
def test_adopted_values_win_over_the_schedules(change, ahead):
    change(ahead, lr=8.0)
    train(ahead, ahead.param_groups[0]["params"], range(2, 3))
    assert ahead.param_groups[0]["lr"] == 4.0
    assert ahead.keep.last_epoch == 3


def test_groups_built_without_a_look_are_adopted(ahead):
    """Plain dicts put in while the host had yet to catch up."""
    values = {"lr": 8.0, "momentum": 0.0, "dampening": 0, "weight_decay": 0, "nesterov": False}
    params = three()
    others = {"maximize": False, "foreach": None, "differentiable": False, "fused": None}
    ahead.param_groups = [{"params": params, **values, **others}]
    train(ahead, params, range(1))
    assert ahead.param_groups[0]["lr"] == 4.0
    assert ahead.keep.last_epoch == 3


def test_the_list_of_groups_stays_the_same_object(engine):
    """Lookahead and others share it."""
    params = three()
    opt = OURS.SGD(params, lr=LR)
    shared = opt.param_groups
    train(opt, params, range(1))
    shared[0] = dict(shared[0]) | {"lr": 0.5}
    train(opt, params, range(1))
    assert opt.param_groups is shared
    shared[0]["lr"] = 0.25
    assert opt.param_groups[0]["lr"] == 0.25


# -- wrappers ------------------------------------------------------------------------------------


class Wrapper:
    """As Lightning and Fabric wrap an optimizer: of its class, with its attributes."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Wrapped" + type(optimizer).__name__, (Wrapper, type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


@pytest.mark.parametrize("row", **named(FEW))
def test_wrappers_may_call_everything(row, engine):
    opt, ours, reference, theirs = pair(row, three)
    wrapped = Wrapper(opt)
    assert isinstance(wrapped, type(opt))
    for one, params in ((wrapped, ours), (reference, theirs)):
        train(one, params, range(2))
        saved = copy.deepcopy(one.state_dict())
        one.load_state_dict(saved)
        one.param_groups[0]["lr"] = 0.02
        params.append(three()[0])
        one.add_param_group({"params": params[-1:]})
        one.zero_grad()
        assert params[0].grad is None
        train(one, params, range(2, STEPS))
    check(ours, theirs)
    assert wrapped.state is opt.state
    assert len(opt.state) == len(reference.state)
    assert not {"state", "param_groups", "defaults"} & set(vars(wrapped))


def test_schedulers_may_be_built_on_wrappers(engine):
    params = three()
    opt = OURS.SGD(params, lr=LR)
    wrapped = Wrapper(opt)
    schedule = fused_sched.lr_scheduler.ExponentialLR(wrapped, 0.5)
    for step in range(2):
        set_grads(params, step)
        wrapped.step()
        schedule.step()
    assert opt.param_groups[0]["lr"] == LR / 4


# -- checkpoints of torch.distributed --------------------------------------------------------------


def probe(opt: Any) -> None:
    """``torch.distributed.checkpoint.state_dict._init_optim_state``, which fills an empty state."""
    params = [p for group in opt.param_groups for p in group["params"]]
    for param in params:
        param.grad = torch.zeros_like(param)
    rates = [group["lr"] for group in opt.param_groups]
    for group in opt.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], Tensor) else 0.0
    opt.step(closure=None)
    for group, lr in zip(opt.param_groups, rates, strict=True):
        group["lr"] = lr
    opt.zero_grad(set_to_none=True)


@pytest.mark.parametrize("row", **named(FEW))
def test_the_probe_of_distributed_checkpoints_moves_nothing(row, engine):
    params = three()
    before = [p.detach().clone() for p in params]
    opt = row.build(OURS, params)
    schedule = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, schedule, interval=1)
    probe(opt)
    assert schedule.last_epoch == 0
    assert opt.param_groups[0]["lr"] == row.kwargs["lr"]
    check([p.detach() for p in params], before)
    assert len(opt.state) == len(params)
    train(opt, params, range(2))
    assert opt.param_groups[0]["lr"] == row.kwargs["lr"] / 4
    assert schedule.last_epoch == 2


def test_a_first_step_at_zero_with_gradients_is_no_probe(engine):
    params = three()
    before = [p.detach().clone() for p in params]
    opt = OURS.SGD(params, lr=LR)
    schedule = fused_sched.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    fused_sched.fuse(opt, schedule, interval=1)
    opt.param_groups[0]["lr"] = 0.0
    train(opt, params, range(1))
    check([p.detach() for p in params], before)
    assert schedule.last_epoch == 1


def test_a_schedule_that_starts_at_zero_moves(engine):
    """lr 0 by the schedule is no probe."""
    params = three()
    opt = OURS.SGD(params, lr=LR)
    schedule = fused_sched.lr_scheduler.LambdaLR(opt, lambda epoch: epoch / 4)
    fused_sched.fuse(opt, schedule, interval=1)
    assert opt.param_groups[0]["lr"] == 0.0
    train(opt, params, range(2))
    assert opt.param_groups[0]["lr"] == LR / 2


@pytest.mark.parametrize("steps", [0, 4], ids=["first", "later"])
@pytest.mark.parametrize("key", ["lr", "weight_decay", "eps"])
def test_text_for_a_number_raises_as_in_torch(key, steps, engine):
    """At the assignment or in the step, and then no param has moved."""
    for optim in (torch.optim, OURS):
        params = three()
        opt = optim.AdamW(params, lr=0.1)
        train(opt, params, range(steps))
        before = [param.detach().clone() for param in params]
        with pytest.raises(TypeError):
            opt.param_groups[0][key] = "0.2"
            train(opt, params, range(1))
        if optim is OURS and engine != "eager":
            assert all(map(torch.equal, params, before))
