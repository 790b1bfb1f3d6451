"""What no launch can update goes to torch's own step: the same bits, beside params that launch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from tests.recording import capturing
from tests.training import OURS, check

OURS_SCHEDULERS = fused_sched.lr_scheduler
CLASSES = ("SGD", "Adam", "AdamW")
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}

Odd = Callable[[], Tensor]


def sparse(grad: Tensor) -> Tensor:
    """Some rows of a gradient, as an embedding's with ``sparse=True``."""
    rows = torch.tensor([0, 2])
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape)


@pytest.fixture(autouse=True)
def checked():
    """Some torch warn where nobody has said whether sparse tensors are to be checked."""
    with torch.sparse.check_sparse_tensor_invariants():
        yield


class Run:
    """Two ordinary params and an odd one between them, under a schedule.

    Args:
        odd: makes the odd param.
        kinds: of its gradients in turn: ``"s"`` sparse, ``"d"`` dense, ``"."`` none.
    """

    def __init__(
        self, optim: ModuleType, schedulers: ModuleType, name: str, odd: Odd, kinds: str = "d"
    ) -> None:
        torch.manual_seed(5)
        self.odd, self.kinds = odd(), kinds
        self.ordinary = [Parameter(torch.randn(3)), Parameter(torch.randn(2, 2))]
        params = [self.ordinary[0], self.odd, self.ordinary[1]]
        self.opt: Any = getattr(optim, name)(params, lr=0.1, **OPTIONS.get(name, {}))
        self.schedulers = schedulers
        self.scheduler: Any = schedulers.ExponentialLR(self.opt, 0.9)
        self.steps = 0

    def backward(self) -> None:
        torch.manual_seed(self.steps)
        kind = self.kinds[self.steps % len(self.kinds)]
        self.steps += 1
        for param in (*self.ordinary, self.odd):
            param.grad = torch.randn(param.shape).to(param.device, param.dtype)
        if kind != "d":
            self.odd.grad = sparse(self.odd.grad) if kind == "s" else None

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.backward()
            self.opt.step()
            self.scheduler.step()


class Both:
    def __init__(self, name: str, odd: Odd, kinds: str = "d", fused: bool = False) -> None:
        self.stock = Run(torch.optim, torch.optim.lr_scheduler, name, odd, kinds)
        self.ours = Run(OURS, OURS_SCHEDULERS, name, odd, kinds)
        if fused:
            fused_sched.fuse(self.ours.opt, self.ours.scheduler)

    def step(self, times: int = 1) -> None:
        self.stock.step(times)
        self.ours.step(times)

    def check(self, bits: bool = True) -> None:
        """Values, states and lr; those of the odd param bit for bit."""
        ours, theirs = self.ours, self.stock
        check(ours.ordinary, theirs.ordinary)
        close = {"rtol": 0, "atol": 0} if bits else {"rtol": 1e-5, "atol": 1e-6}
        pairs = [(ours.odd, theirs.odd), *_states(ours, theirs)]
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, **close)
        lrs = [run.opt.param_groups[0]["lr"] for run in (ours, theirs)]
        assert lrs[0] == pytest.approx(lrs[1], rel=1e-12)


def _states(ours: Run, theirs: Run) -> list[tuple[Any, Any]]:
    mine, other = ours.opt.state[ours.odd], theirs.opt.state[theirs.odd]
    assert list(mine) == list(other)
    return [(mine[key], other[key]) for key in mine]


def embedding() -> Tensor:
    return Parameter(torch.randn(4, 3))


def on_meta() -> Tensor:
    return Parameter(torch.randn(4, 3).to("meta"))


@pytest.fixture(params=[False, True], ids=["explicit", "fused"])
def fused(request):
    return request.param


# -- sparse gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["s", "s.", ".s"])
def test_a_sparse_gradient_is_torchs_and_the_rest_is_launched(kinds, fused, engine):
    both = Both("SGD", embedding, kinds, fused)
    for _ in range(5):
        both.step()
        both.check()


@pytest.mark.parametrize("kinds", ["dss", "ddsds.", "d.s"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_that_is_sometimes_sparse(kinds, momentum, fused, engine, monkeypatch):
    monkeypatch.setitem(OPTIONS, "SGD", {"momentum": momentum})
    both = Both("SGD", embedding, kinds, fused)
    for _ in range(9):
        both.step()
        both.check(bits=False)


def test_a_sparse_gradient_after_prepare_and_cached_launches(engine):
    both = Both("SGD", embedding, "ddddddsddddddd")
    both.ours.opt.prepare()
    for times, cached in ((6, True), (1, False), (7, True)):
        both.step(times)
        assert (both.ours.opt._cached is not None) == (cached and engine == "native")
        check([both.ours.odd, *both.ours.ordinary], [both.stock.odd, *both.stock.ordinary])
    both.check(bits=False)


def test_what_torch_cannot_add_raises_as_in_torch(engine):
    """A sparse momentum buffer, and then a dense gradient."""
    both = Both("SGD", embedding, "sd")
    both.step()
    messages = []
    for run in (both.stock, both.ours):
        run.backward()
        with pytest.raises(RuntimeError) as error:
            run.opt.step()
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_raises_torchs_error_and_moves_nothing(name, fused, engine):
    both = Both(name, embedding, "dds", fused)
    both.step(2)
    messages = []
    for run in (both.stock, both.ours):
        run.backward()
        with pytest.raises(RuntimeError) as error:
            run.opt.step()
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    both.check(bits=False)
    both.step(2)
    both.check(bits=False)


def test_a_schedule_from_zero_with_sparse_gradients(engine):
    """The step at lr 0 is not taken for a checkpoint's probe, and no sparse gradient is read."""
    runs = []
    for module, schedulers in ((torch.optim, torch.optim.lr_scheduler), (OURS, OURS_SCHEDULERS)):
        run = Run(module, schedulers, "SGD", embedding, "s")
        run.scheduler = schedulers.LambdaLR(run.opt, lambda epoch: epoch / 10)
        run.step(3)
        runs.append(run)
    assert torch.equal(runs[0].odd, runs[1].odd)


# -- devices and dtypes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_param_on_meta_beside_ordinary_ones(name, fused, engine):
    both = Both(name, on_meta, fused=fused)
    for _ in range(4):
        both.step()
        check(both.ours.ordinary, both.stock.ordinary)
    mine, other = both.ours.opt.state[both.ours.odd], both.stock.opt.state[both.stock.odd]
    assert {k: (v.device, v.shape) for k, v in mine.items()} == {
        k: (v.device, v.shape) for k, v in other.items()
    }
    assert [v.item() for k, v in mine.items() if k == "step"] == [
        v.item() for k, v in other.items() if k == "step"
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_a_whole_model_on_meta(name, engine):
    param = on_meta()
    opt = getattr(OURS, name)([param], lr=0.1)
    scheduler = OURS_SCHEDULERS.StepLR(opt, 1)
    fused_sched.fuse(opt, scheduler)
    param.grad = torch.empty_like(param)
    opt.step()
    scheduler.step()
    assert opt.param_groups[0]["lr"] == pytest.approx(0.01)
    assert fused_sched.explain(opt).engine == {"meta": "eager"}


def test_whole_numbers_are_stepped_by_torch(engine):
    """SGD takes them, with a whole lr."""
    results = []
    for module in (torch.optim, OURS):
        params = [Parameter(torch.ones(2)), torch.tensor([7, 8])]
        opt = module.SGD(params, lr=1)
        for _ in range(3):
            params[0].grad, params[1].grad = torch.ones(2), torch.tensor([1, 2])
            opt.step()
        results.append([param.tolist() for param in params])
    assert results[0] == results[1] == [[-2.0, -2.0], [4, 2]]


def test_a_dtype_that_torch_refuses_raises_as_in_torch(engine):
    messages = []
    for module in (torch.optim, OURS):
        param = torch.ones(2).to(torch.float8_e4m3fn).requires_grad_()
        param.grad = torch.zeros_like(param)
        opt = module.SGD([param], lr=1.0)
        with pytest.raises(Exception) as error:
            opt.step()
        messages.append((type(error.value), str(error.value)))
    assert messages[0] == messages[1]


def test_a_tensor_subclass_is_stepped_by_torch(engine):
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    results = []
    for module in (torch.optim, OURS):
        param = Parameter(two_tensor(torch.ones(3), torch.full((3,), 2.0)))
        opt = module.AdamW([param, ordinary := Parameter(torch.ones(2))], lr=0.1)
        for _ in range(3):
            param.grad = two_tensor(torch.ones(3), torch.full((3,), -1.0))
            ordinary.grad = torch.ones(2)
            opt.step()
        results.append((param.detach().a, param.detach().b, ordinary))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    check(results[1][2:], results[0][2:])


# -- checkpoints, conversion, a scaler -----------------------------------------------------------

ODD = [
    pytest.param("SGD", embedding, "s", id="sparse"),
    pytest.param("SGD", embedding, "dds", id="mixed"),
    pytest.param("AdamW", on_meta, "d", id="meta"),
]


@pytest.mark.parametrize("name, odd, kinds", ODD)
def test_checkpoints_go_both_ways(name, odd, kinds, fused, engine):
    both = Both(name, odd, kinds, fused)
    both.step(4)
    saved = [run.opt.state_dict() for run in (both.stock, both.ours)]
    values = [[p.detach().clone() for p in (*r.ordinary, r.odd)] for r in (both.stock, both.ours)]
    crossed = Both(name, odd, kinds, fused)
    for run, state, params in zip((crossed.ours, crossed.stock), saved, values, strict=True):
        run.opt.load_state_dict(copy.deepcopy(state))
        run.scheduler.last_epoch = run.steps = 4
        for mine, value in zip((*run.ordinary, run.odd), params, strict=True):
            mine.data.copy_(value)
    crossed.step(3)
    both.step(3)
    for one, other in ((crossed.ours, both.stock), (crossed.stock, both.stock)):
        check(one.ordinary, other.ordinary)
        if odd is not on_meta:
            torch.testing.assert_close(one.odd, other.odd, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, odd, kinds", ODD[:2])
def test_a_stock_optimizer_is_converted_mid_run(name, odd, kinds, engine):
    both = Both(name, odd, kinds)
    run = Run(torch.optim, torch.optim.lr_scheduler, name, odd, kinds)
    both.stock.step(3)
    run.step(3)
    fused_sched.fuse(run.opt, run.scheduler)
    assert isinstance(run.opt, OURS.SGD)
    both.ours = run
    both.step(4)
    both.check(bits=kinds == "s")


def test_found_inf_stops_both(engine):
    both = Both("SGD", embedding, "s")
    run = both.ours
    both.step(2)
    before = [p.detach().clone() for p in (*run.ordinary, run.odd)]
    run.opt.grad_scale, run.opt.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    run.backward()
    run.opt.step()
    assert all(map(torch.equal, (*run.ordinary, run.odd), before))
    run.steps -= 1
    run.opt.found_inf = torch.tensor(0.0)
    both.stock.backward()
    run.backward()
    for param in (*run.ordinary, run.odd):
        param.grad = param.grad * 4.0
    for one in (both.stock, run):
        one.opt.step()
        one.scheduler.step()
    both.check()


def test_torchs_scaler_with_a_sparse_gradient(engine):
    both = Both("SGD", embedding, "s")
    for run in (both.stock, both.ours):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for bad in (False, True, False):
            run.backward()
            scaler.scale(torch.ones(()))
            if bad:
                run.odd.grad = run.odd.grad * float("inf")
            scaler.step(run.opt)
            scaler.update()
    both.check()


# -- differentiable ------------------------------------------------------------------------------


def learned(
    module: ModuleType, schedulers: ModuleType | None, name: str, fuse: bool
) -> Sequence[Tensor]:
    """The gradients of a loss after three recorded steps, and where the params went."""
    torch.manual_seed(2)
    start = [torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)]
    params = [value.clone() for value in start]
    opt = getattr(module, name)(params, lr=0.1, differentiable=True, **OPTIONS.get(name, {}))
    scheduler = None if schedulers is None else schedulers.ExponentialLR(opt, 0.5)
    if fuse:
        fused_sched.fuse(opt, scheduler)
    for step in range(3):
        for param, value in zip(params, start, strict=True):
            param.grad = value * (step + 1)
        with torch.no_grad():  # torch's step records all the same
            opt.step()
        if scheduler is not None:
            scheduler.step()
    sum(param.square().sum() for param in params).backward()
    return [*(value.grad for value in start), *(param.detach() for param in params)]


@pytest.mark.parametrize("mode", ["alone", "explicit", "fused", "converted"])
@pytest.mark.parametrize("name", CLASSES)
def test_autograd_goes_through_a_differentiable_step(name, mode, engine):
    ours = torch.optim if mode == "converted" else OURS
    ours_schedulers = torch.optim.lr_scheduler if mode == "converted" else OURS_SCHEDULERS
    alone = mode == "alone"
    theirs = learned(torch.optim, None if alone else torch.optim.lr_scheduler, name, fuse=False)
    mine = learned(ours, None if alone else ours_schedulers, name, mode in ("fused", "converted"))
    assert all(map(torch.equal, mine, theirs))


def test_lr_can_be_learned(engine):
    grads = []
    for module in (torch.optim, OURS):
        lr = torch.tensor(0.1, requires_grad=True)
        param = torch.ones(3, requires_grad=True).clone()
        opt = module.SGD([param], lr=lr, differentiable=True)
        param.grad = torch.full((3,), 2.0)
        opt.step()
        param.sum().backward()
        grads.append(lr.grad)
    assert torch.equal(*grads) and grads[0] == -6.0


@pytest.mark.parametrize("name", CLASSES)
def test_checkpoints_of_a_differentiable_optimizer(name, engine):
    """Into ours from stock's, and back."""
    ends = []
    for path in ((torch.optim, torch.optim), (OURS, torch.optim), (torch.optim, OURS)):
        params, saved = [torch.ones(3)], None
        for module in path:
            opt = getattr(module, name)(params, lr=0.1, differentiable=True)
            if saved is not None:
                opt.load_state_dict(saved)
            for _ in range(2):
                params[0].grad = params[0].detach() * 0.5
                opt.step()
            saved = opt.state_dict()
        ends.append(params[0])
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])


# -- what is said --------------------------------------------------------------------------------


def test_explain_says_why(launch_engine):
    run = Run(OURS, OURS_SCHEDULERS, "SGD", embedding, "s")
    whole = torch.tensor([1, 2])
    whole.grad = whole.clone()
    run.opt.add_param_group({"params": [on_meta(), on_meta(), whole], "lr": 1, "momentum": 0})
    run.backward()
    told = fused_sched.explain(run.opt)
    reasons = {"with a sparse gradient": 1, "on meta": 2, "of dtype int64": 1}
    assert told.torch_step == reasons
    words = "1 param with a sparse gradient, 2 params on meta, 1 param of dtype int64"
    assert f"torch's own step: {words}\n" in str(told)
    assert told.launches_per_step is None
    run.scheduler.base_lrs.append(1)
    run.opt.step()
    run.opt.zero_grad()
    assert fused_sched.explain(run.opt).torch_step == reasons  # as the gradients last came
    run.kinds = "d"
    run.backward()
    assert "with a sparse gradient" not in fused_sched.explain(run.opt).torch_step


def test_explain_says_that_all_is_torchs(engine):
    opt = OURS.AdamW([torch.ones(2), torch.ones(3)], differentiable=True)
    assert "torch's own step: 2 params with differentiable=True" in str(fused_sched.explain(opt))


@pytest.mark.parametrize("odd, kinds", [(embedding, "s"), (on_meta, "d")], ids=["sparse", "meta"])
def test_a_capture_refuses_and_says_what_to_do(odd, kinds, launch_engine):
    run = Run(OURS, OURS_SCHEDULERS, "SGD", odd, "d")
    run.step()
    run.kinds = kinds
    run.backward()
    before = [p.detach().clone() for p in run.ordinary]
    with capturing(), pytest.raises(RuntimeError, match="optimizer of its own, and step that one"):
        run.opt.step()
    assert all(map(torch.equal, run.ordinary, before))


def test_a_capture_refuses_a_differentiable_step(launch_engine):
    opt = OURS.SGD([param := torch.ones(2)], differentiable=True)
    param.grad = torch.ones(2)
    with capturing(), pytest.raises(RuntimeError, match="every param, with differentiable=True"):
        opt.step()
