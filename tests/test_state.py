"""``optimizer.state``, checkpoints, copies, and what an optimizer leaves behind."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_sched
from tests.cases import ONE_OF_EACH, OPTIMIZERS, SHAPES, gradient
from tests.differences import note_state
from tests.training import (
    FEW,
    OURS,
    STEPS,
    case,
    check,
    launched,
    named,
    pair,
    set_grads,
    stepped,
    stock,
    three,
    train,
)

MOMENTUM = case("SGD-momentum")
ADAM = case("Adam-amsgrad")


def shape_of_state(opt: Any, params: list[Tensor]) -> list[Any]:
    """Everything about the state but its values, by param, and the step counts."""
    return [
        {
            name: (value.dtype, value.device, value.shape, value.stride(), value.is_leaf)
            if isinstance(value, Tensor)
            else value
            for name, value in opt.state[param].items()
        }
        | {"count": float(opt.state[param].get("step", -1))}
        for param in params
        if param in opt.state
    ]


def check_state(opt: Any, reference: Any) -> None:
    """Keys in torch's order, values within tolerance, of ours and of torch's."""
    ours, theirs = opt.state_dict()["state"], reference.state_dict()["state"]
    assert list(ours) == list(theirs)
    note_state(ours, theirs)
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert list(mine) == list(other)
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def roundtrip(state_dict: Any) -> Any:
    """Through a file, as a checkpoint travels."""
    memory = io.BytesIO()
    torch.save(state_dict, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=True)


# -- state as torch's ----------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(**launched(OPTIMIZERS))
def test_state_is_like_that_of_torch_at_every_moment(row, fused, launch_engine):
    """Params of two dtypes, one gradient late (stock SGD fused cannot do that); at every step."""
    options = {"fused" if row.takes("fused") else "foreach": fused}
    kinds = [SHAPES[0].build(), SHAPES[9].build(torch.bfloat16), SHAPES[2].build()]
    theirs = [p.detach().clone().requires_grad_() for p in kinds]
    opt, reference = row.build(OURS, kinds, **options), row.build(torch.optim, theirs, **options)
    for step in range(3):
        assert shape_of_state(opt, kinds) == shape_of_state(reference, theirs)
        assert len(opt.state) == len(reference.state)
        for one, params in ((opt, kinds), (reference, theirs)):
            set_grads(params, step)
            params[1].grad = gradient(params[1], step) if step or fused else None
            one.step()
    assert shape_of_state(opt, kinds) == shape_of_state(reference, theirs)


@pytest.mark.parametrize(**stepped(OPTIMIZERS))
def test_state_fills_when_torchs_does(row, engine):
    params = three()
    opt = row.build(OURS, params)
    reference = stock(row, params)
    opt.prepare()
    assert len(opt.state) == len(opt.state_dict()["state"]) == len(reference.state)
    opt.step()
    assert len(opt.state) == len(reference.state)
    train(reference, params, range(1))
    opt.step()
    assert len(opt.state) == len(reference.state)


@pytest.mark.parametrize(**stepped(ONE_OF_EACH))
def test_state_has_torchs_values(row, engine):
    opt, ours, reference, theirs = pair(row, three)
    for step in range(STEPS):
        train(opt, ours, [step])
        train(reference, theirs, [step])
        check_state(opt, reference)


@pytest.mark.parametrize("held", [False, True], ids=["read-anew", "held"])
def test_step_counts_are_those_of_now(held, engine):
    params = three()
    opt = OURS.Adam(params)
    train(opt, params, range(1))
    state = opt.state
    for step in range(1, STEPS):
        train(opt, params, [step])
        seen = opt.state
        assert seen is state
        assert [int(seen[p]["step"]) for p in params] == [step + 1] * 3
        if not held:
            state = seen


# -- checkpoints ---------------------------------------------------------------------------------

Swap = Callable[[Any, Any], tuple[Any, Any]]


@pytest.mark.parametrize(**launched(OPTIMIZERS))
def test_checkpoints_pass_both_ways_mid_run(row, launch_engine):
    """torch -> ours -> torch -> ours, each on params of its own; torch alone is the reference."""
    alone = three()
    expected = stock(row, alone)
    params, saved = three(), None
    for leg, module in enumerate([torch.optim, OURS, torch.optim, OURS]):
        params = [p.detach().clone().requires_grad_() for p in params]
        opt = row.build(module, params)
        if saved is not None:
            opt.load_state_dict(saved)
        for step in range(2 * leg, 2 * leg + 2):
            train(opt, params, [step])
            train(expected, alone, [step])
        saved = roundtrip(opt.state_dict())
    check(params, alone)
    check_state(opt, expected)


def addresses(opt: Any) -> list[int]:
    """Where the moments, the device buffer and the param table lie."""
    moments = [
        value.data_ptr()
        for entry in opt.state.values()
        for name, value in entry.items()
        if name != "step"
    ]
    device_states = opt._ledger.mirror.host.device_states.values()
    return moments + [a for p in device_states for a in (p.buffer.memory.data_ptr(), id(p.table))]


@pytest.mark.parametrize("row", **named(FEW))
def test_load_keeps_every_address(row, engine):
    params, other = three(), three()
    opt, source = row.build(OURS, params), stock(row, other, lr=0.125)
    train(opt, params, range(3))
    train(source, other, range(STEPS))
    before = addresses(opt)
    opt.load_state_dict(source.state_dict())
    train(opt, params, range(1))
    assert addresses(opt) == before or not opt._ledger.mirror.host.device_states


@pytest.mark.parametrize("row", **named(FEW))
def test_load_continues_from_the_checkpoint(row, engine):
    """Into an optimizer that has steps of its own, and into a prepared one."""
    theirs = three()
    source = stock(row, theirs, lr=0.125)
    train(source, theirs, range(2))
    saved, at = copy.deepcopy(source.state_dict()), [p.detach().clone() for p in theirs]
    train(source, theirs, range(2, 4))
    for steps in (0, 3):
        params = three()
        opt = row.build(OURS, params)
        opt.prepare()
        train(opt, params, range(steps))
        opt.load_state_dict(saved)
        for param, value in zip(params, at, strict=True):
            param.data.copy_(value)
        train(opt, params, range(2, 4))
        check(params, theirs)
        check_state(opt, source)
        assert opt.param_groups[0]["lr"] == 0.125


def test_load_leaves_the_given_state_dict_alone(engine):
    params = three()
    opt = OURS.Adam(params)
    train(opt, params, range(2))
    saved = opt.state_dict()
    kept = copy.deepcopy(saved)
    other = three()
    loaded = OURS.Adam(other)
    loaded.load_state_dict(saved)
    train(loaded, other, range(2))
    torch.testing.assert_close(saved, kept, rtol=0, atol=0)


def test_load_of_a_checkpoint_without_steps_starts_anew(engine):
    params, theirs = three(), three()
    opt = OURS.Adam(params)
    empty = copy.deepcopy(opt.state_dict())
    train(opt, params, range(3))
    opt.load_state_dict(empty)
    assert not opt.state
    for param, other in zip(params, theirs, strict=True):
        param.data.copy_(other)
    reference = torch.optim.Adam(theirs)
    train(opt, params)
    train(reference, theirs)
    check(params, theirs)


@pytest.mark.parametrize("prepared", [False, True])
def test_moments_keep_their_own_dtype(prepared, engine):
    """float32 moments of bfloat16 params survive, which torch would round."""
    params = [SHAPES[9].build(torch.bfloat16)]
    moments = {
        name: torch.rand(params[0].shape, dtype=torch.float32) + 0.1
        for name in ("exp_avg", "exp_avg_sq")
    }
    saved = OURS.Adam(params).state_dict()
    saved["state"] = {0: {"step": torch.tensor(3.0), **moments}}
    opt = OURS.Adam(params)
    if prepared:
        opt.prepare()
        train(opt, params, range(1))
    opt.load_state_dict(saved)
    for name, moment in moments.items():
        assert torch.equal(opt.state[params[0]][name], moment)


def test_fp32_moments_of_bf16_params_train(launch_engine):
    params = [SHAPES[9].build(torch.bfloat16)]
    exact = [params[0].detach().float().requires_grad_()]
    reference = torch.optim.Adam(exact, lr=0.01)
    train(reference, exact, range(3))
    opt = OURS.Adam(params, lr=0.01)
    opt.load_state_dict(reference.state_dict())
    for step in range(3, 6):
        train(opt, params, [step])
        exact[0].grad = params[0].grad.float()
        reference.step()
    moment = opt.state[params[0]]["exp_avg_sq"]
    assert moment.dtype == torch.float32
    torch.testing.assert_close(moment, reference.state[exact[0]]["exp_avg_sq"])


def other_shape(saved: dict[str, Any]) -> None:
    entry = next(iter(saved["state"].values()))
    entry[list(entry)[-1]] = torch.zeros(2, 2)


def other_class(saved: dict[str, Any]) -> None:
    for group in saved["param_groups"]:
        for name in ("betas", "momentum"):
            group.pop(name, None)


def other_groups(saved: dict[str, Any]) -> None:
    saved["param_groups"] *= 2


def other_sizes(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["params"].pop()


def other_values(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["lr"] = "fast"


@pytest.mark.parametrize(
    "spoil", **named([other_shape, other_class, other_groups, other_sizes, other_values])
)
@pytest.mark.parametrize("row", **named([MOMENTUM, ADAM]))
def test_wrong_checkpoints_raise_and_change_nothing(row, spoil, engine):
    opt, ours, reference, theirs = pair(row, three)
    for one, params in ((opt, ours), (reference, theirs)):
        train(one, params, range(2))
    saved = copy.deepcopy(opt.state_dict())
    spoil(saved)
    with pytest.raises(ValueError):
        opt.load_state_dict(saved)
    for one, params in ((opt, ours), (reference, theirs)):
        train(one, params, range(2, 4))
    check(ours, theirs)
    check_state(opt, reference)


def test_old_checkpoints_with_int_steps_load(engine):
    opt, ours, reference, theirs = pair(ADAM, three)
    train(reference, theirs, range(2))
    saved = reference.state_dict()
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])
    opt.load_state_dict(saved)
    reference.load_state_dict(copy.deepcopy(saved))
    for param, other in zip(ours, theirs, strict=True):
        param.data.copy_(other)
    train(opt, ours, range(2, 4))
    train(reference, theirs, range(2, 4))
    check(ours, theirs)
    check_state(opt, reference)


def test_hooks_of_checkpoints_run(engine):
    params = three()
    opt = OURS.SGD(params, lr=0.5)
    seen = []
    opt.register_load_state_dict_pre_hook(lambda _, saved: seen.append("pre"))
    opt.register_load_state_dict_post_hook(lambda _: seen.append("post"))
    opt.register_state_dict_post_hook(lambda _, saved: seen.append("saved"))
    opt.load_state_dict(opt.state_dict())
    assert seen == ["saved", "pre", "post"]


def test_hooks_may_change_what_was_loaded(engine):
    params = three()
    opt = OURS.Adam(params)
    train(opt, params, range(2))

    def halve(one: Any) -> None:
        for entry in one.state.values():
            entry["exp_avg"].mul_(0.5)

    opt.register_load_state_dict_post_hook(halve)
    before = opt.state[params[0]]["exp_avg"].clone()
    opt.load_state_dict(opt.state_dict())
    assert torch.equal(opt.state[params[0]]["exp_avg"], before / 2)
    moment = opt.state[params[0]]["exp_avg"].clone()
    for param in params:
        param.grad = torch.zeros_like(param)
    opt.step()
    torch.testing.assert_close(opt.state[params[0]]["exp_avg"], 0.9 * moment)


def test_the_groups_of_a_checkpoint_are_plain(engine):
    opt = OURS.AdamW(three(), lr=0.5)
    train(opt, opt.param_groups[0]["params"], range(1))
    saved = opt.state_dict()
    assert [type(group) for group in saved["param_groups"]] == [dict]
    assert saved["param_groups"][0]["lr"] == 0.5
    roundtrip(saved)


# -- copies --------------------------------------------------------------------------------------


def deepcopied(opt: Any, params: list[Tensor]) -> tuple[Any, list[Tensor]]:
    return copy.deepcopy((opt, params))


def pickled(opt: Any, params: list[Tensor]) -> tuple[Any, list[Tensor]]:
    return pickle.loads(pickle.dumps((opt, params)))


def saved(opt: Any, params: list[Tensor]) -> tuple[Any, list[Tensor]]:
    memory = io.BytesIO()
    torch.save((opt, params), memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)


@pytest.mark.parametrize("duplicate", **named([deepcopied, pickled, saved]))
@pytest.mark.parametrize("row", **named(FEW))
def test_copies_go_on_by_themselves(row, duplicate, engine):
    opt, ours, reference, theirs = pair(row, three)
    train(opt, ours, range(2))
    train(reference, theirs, range(2))
    twin, own = duplicate(opt, ours)
    assert [type(group) for group in twin.param_groups] == [
        type(group) for group in opt.param_groups
    ]
    twin.param_groups[0]["lr"] = 0.0
    opt.param_groups[0]["weight_decay"] = reference.param_groups[0]["weight_decay"] = 0.25
    train(opt, ours, range(2, 4))
    train(reference, theirs, range(2, 4))
    check(ours, theirs)
    frozen = [p.detach().clone() for p in own]
    train(twin, own, range(2, 4))
    assert [float(s["step"]) for s in twin.state.values() if "step" in s] == [
        float(s["step"]) for s in opt.state.values() if "step" in s
    ]
    check([p.detach() for p in own], frozen)  # lr is 0


# -- state in other hands ------------------------------------------------------------------------


def moved_like_lightning(opt: Any) -> None:
    """Entry by entry, as Lightning moves a state to the CPU at teardown."""
    for param, entry in opt.state.items():
        opt.state[param] = {name: value.clone() for name, value in entry.items()}


def replaced(opt: Any) -> None:
    opt.state = defaultdict(dict, {p: copy.deepcopy(entry) for p, entry in opt.state.items()})


def replaced_by_a_dict(opt: Any) -> None:
    opt.state = {p: copy.deepcopy(entry) for p, entry in opt.state.items()}


def scaled_in_place(opt: Any) -> None:
    for entry in opt.state.values():
        for value in entry.values():
            value.mul_(2)


def scaled_out_of_place(opt: Any) -> None:
    for entry in opt.state.values():
        for name in list(entry):
            entry[name] = entry[name] * 2


def cleared(opt: Any) -> None:
    opt.state.clear()


def replaced_by_nothing(opt: Any) -> None:
    opt.state = defaultdict(dict)


def one_forgotten(opt: Any) -> None:
    del opt.state[opt.param_groups[0]["params"][1]]


def other_strides(opt: Any) -> None:
    for entry in opt.state.values():
        for name, value in entry.items():
            entry[name] = value.clone().mT.contiguous().mT if value.dim() == 2 else value.clone()


CHANGES = [
    moved_like_lightning,
    replaced,
    replaced_by_a_dict,
    scaled_in_place,
    scaled_out_of_place,
    cleared,
    replaced_by_nothing,
    one_forgotten,
    other_strides,
]


@pytest.mark.parametrize("change", **named(CHANGES))
@pytest.mark.parametrize("row", **named([MOMENTUM, ADAM]))
def test_changes_of_state_take_effect_at_the_next_step(row, change, launch_engine):
    opt, ours, reference, theirs = pair(row, three)
    for one, params in ((opt, ours), (reference, theirs)):
        train(one, params, range(2))
        change(one)
        train(one, params, range(2, 4))
    check(ours, theirs)
    check_state_by_param(opt, ours, reference, theirs)


def check_state_by_param(
    opt: Any, ours: list[Tensor], reference: Any, theirs: list[Tensor]
) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            dict(opt.state[mine]), dict(reference.state[other]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("row", **named([MOMENTUM, ADAM]))
def test_changes_through_a_held_state_take_effect(row, launch_engine):
    opt, ours, reference, theirs = pair(row, three)
    for one, params in ((opt, ours), (reference, theirs)):
        train(one, params, range(2))
        state = one.state
        train(one, params, range(2, 4))
        for entry in state.values():
            for name in list(entry):
                entry[name] = entry[name] * 0.5 if name != "step" else entry[name] - 2
        train(one, params, range(4, 6))
    if "step" not in next(iter(state.values())):
        check(ours, theirs)
    assert [float(s.get("step", 0)) for s in opt.state.values()] == [
        float(s.get("step", 0)) for s in reference.state.values()
    ]


def test_changed_step_counts_count(launch_engine):
    opt, ours, reference, theirs = pair(ADAM, three)
    for one, params in ((opt, ours), (reference, theirs)):
        train(one, params, range(2))
        one.state[params[0]]["step"].fill_(7)
        one.state[params[1]]["step"] = torch.tensor(1.0)
        assert [float(one.state[p]["step"]) for p in params] == [7, 1, 2]
        train(one, params, range(2, 4))
        assert [float(one.state[p]["step"]) for p in params] == [9, 3, 4]
    check(ours, theirs)


# -- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", **named([row for row in OPTIMIZERS if row.interpreted]))
def test_engines_may_take_turns(row):
    opt, ours, reference, theirs = pair(row, three)
    for step, name in enumerate(
        ["eager", "triton", "native", "eager", "native", "native", "triton"]
    ):
        with fused_sched.use_engine(name):
            train(opt, ours, [step])
            train(reference, theirs, [step])
    check(ours, theirs)
    check_state(opt, reference)


def test_a_fused_schedule_outlives_a_change_of_engine():
    params = three()
    opt = OURS.SGD(params, lr=1.0)
    scheduler = fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)
    fused_sched.fuse(opt, scheduler, interval=1)
    for step, name in enumerate(["triton", "native", "eager", "triton", "eager", "native"]):
        with fused_sched.use_engine(name):
            train(opt, params, [step])
    assert scheduler.last_epoch == 6
    assert opt.param_groups[0]["lr"] == 0.5**6


# -- what stays behind ---------------------------------------------------------------------------


def with_nothing(opt: Any) -> None:
    return None


def with_scheduler(opt: Any) -> Any:
    return fused_sched.lr_scheduler.ExponentialLR(opt, 0.5)


def with_stock_scheduler(opt: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)


@contextlib.contextmanager
def no_collection() -> Any:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("scheduler", **named([with_nothing, with_scheduler, with_stock_scheduler]))
@pytest.mark.parametrize("row", **named([MOMENTUM, ADAM]))
def test_no_cyclic_references(row, scheduler, engine):
    """Deleting the last reference frees it: state is large, and nobody waits for the collector."""
    params = three()
    opt = row.build(OURS, params)
    schedule = scheduler(opt)
    train(opt, params, range(1))
    opt.load_state_dict(opt.state_dict())
    train(opt, params, range(1))
    state = opt.state
    alive = weakref.ref(opt), weakref.ref(opt._ledger)
    del state
    with no_collection():
        del schedule
        assert len(gc.get_referrers(opt)) <= 1  # this frame, where Python shows it
        del opt
        assert [ref() for ref in alive] == [None, None]
        assert gc.collect() == 0
