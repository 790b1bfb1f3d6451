"""A short run for compute-sanitizer's memcheck, without CUDA graphs.

``python -m tests.gpu.sanitize`` starts every kernel of the Triton engine over the shapes that hurt,
with gradients that are missing, odd and scaled. Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1: each
tensor is then an allocation of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

import fused_sched
from tests.cases import OPTIMIZERS, SHAPES, gradient

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STEPS = 3


def _params(device: torch.device) -> list[Parameter]:
    built = [(s.build(d, str(device)), d) for s in SHAPES for d in DTYPES]
    return [Parameter(tensor.detach()) for tensor, _ in built]


def _set_gradients(params: list[Parameter], step: int) -> None:
    for number, param in enumerate(params):
        missing = (number + step) % 5 == 0
        param.grad = None if missing else gradient(param.detach(), step)


def optimizers(device: torch.device) -> None:
    """The combinations of options, fused with a schedule, in several groups."""
    for case in OPTIMIZERS:
        if not case.id.endswith("combo"):
            continue
        params = _params(device)
        groups = [{"params": params[:9]}, {"params": params[9:40]}, {"params": params[40:]}]
        opt = case.build(fused_sched.optim, groups)
        cycles = bool({"momentum", "betas"} & set(opt.defaults))
        one_cycle = fused_sched.lr_scheduler.OneCycleLR
        sched = one_cycle(opt, max_lr=0.1, total_steps=20, cycle_momentum=cycles)
        fused_sched.fuse(opt, sched)
        for step in range(STEPS):
            _set_gradients(params, step)
            opt.step()
        assert all(bool(param.isfinite().all()) for param in params), case.id
        print("ok", case.id, opt.param_groups[0]["lr"], flush=True)


def scaler(device: torch.device) -> None:
    """GradScaler's two tensors, with and without an overflow."""
    params = _params(device)
    opt = fused_sched.optim.AdamW(params, fused=True)
    opt.prepare()
    for step, overflow in enumerate((1.0, 0.0, 0.0)):
        _set_gradients(params, step)
        opt.grad_scale = torch.tensor(4.0, device=device)
        opt.found_inf = torch.tensor(overflow, device=device)
        opt.step()
    assert {float(opt.state[p]["step"]) for p in opt.state} <= {1.0, 2.0}
    print("ok scaler", flush=True)


def schedules(device: torch.device) -> None:
    """A schedule of 200 groups alone, traced; a plateau fed on the device."""
    groups = [{"params": [Parameter(torch.ones(1, device=device))]} for _ in range(200)]
    opt = fused_sched.optim.SGD(groups, lr=0.1, momentum=0.9)
    parts = fused_sched.lr_scheduler
    warmup = parts.LinearLR(opt, total_iters=3)
    after = parts.CosineAnnealingWarmRestarts(opt, T_0=2, T_mult=2)
    opt.step()
    sequential = parts.SequentialLR(opt, [warmup, after], [3])
    plateau = parts.ReduceLROnPlateau(opt, patience=1)
    opt.prepare()
    ledger = opt._ledger
    (device_state,) = ledger.mirror.host.device_states.values()
    program = device_state.buffer.programs[ledger.mirror.host.schedules.program_of(sequential)]
    trace = torch.empty(
        12, *device_state.buffer.record.shape[1:], dtype=torch.float64, device=device
    )
    device_state.engine.advance(device_state.buffer, program, 12, trace=trace)
    assert bool(trace.isfinite().all())
    metric: Tensor = torch.ones((), device=device)
    for _ in range(4):
        plateau.step(metric)
    print("ok schedules", opt.param_groups[199]["lr"], flush=True)


def main() -> None:
    device = torch.device("cuda", 0)
    for engine in ("triton", "native"):
        with fused_sched.use_engine(engine):
            schedules(device)
            scaler(device)
            optimizers(device)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
