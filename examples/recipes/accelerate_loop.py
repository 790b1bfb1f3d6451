"""Accelerate: swap the two classes before prepare(); nothing else changes.

    python examples/recipes/accelerate_loop.py

Trains a small net with stock torch, with fused_sched, and with the schedule fused into the step:
plain, with gradient accumulation and clipping, with the state saved and loaded half-way, and under
a gradient scaler with overflows, at which neither the params nor the schedule move.

On several processes Accelerate calls scheduler.step() once for each of them: do not fuse there, or
set the schedule up in optimizer steps.
"""

import tempfile
import warnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import fused_sched

EPOCHS = 3
CASES = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "saved and loaded": {"accumulate": 2, "save_at": 9},
    "overflowing": {"overflows": (0, 1, 9, 23)},
}


def loader():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randn(64, n, generator=generator) for n in (8, 1))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, targets), batch_size=8
    )


def train(optim, schedulers, fuse, accumulate=1, save_at=None, overflows=()):
    """Return the params, and the lr after each batch."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    if overflows:  # what mixed_precision="fp16" brings on a GPU
        accelerator.scaler = torch.amp.GradScaler("cpu")
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 1)
    opt = optim.AdamW(net.parameters(), lr=1e-2)
    sched = schedulers.CosineAnnealingLR(opt, T_max=20)
    if fuse:
        fused_sched.fuse(opt, sched)
    net, opt, sched, batches = accelerator.prepare(net, opt, sched, loader())
    rates = []
    for _ in range(EPOCHS):
        for inputs, targets in batches:
            with accelerator.accumulate(net):
                loss = torch.nn.functional.mse_loss(net(inputs), targets)
                accelerator.backward(loss * (torch.inf if len(rates) in overflows else 1.0))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                opt.step()
                sched.step()
                opt.zero_grad()
            rates.append(sched.get_last_lr()[0])
            if len(rates) == save_at:
                with tempfile.TemporaryDirectory() as folder:
                    accelerator.save_state(folder)
                    accelerator.load_state(folder)
    return list(net.parameters()), rates


def main():
    warnings.simplefilter("ignore")
    ours = fused_sched.optim, fused_sched.lr_scheduler
    for name, case in CASES.items():
        params, rates = train(torch.optim, torch.optim.lr_scheduler, False, **case)
        for fuse in (False, True):
            our_params, our_rates = train(*ours, fuse, **case)
            torch.testing.assert_close(our_params, params, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(our_rates, rates, rtol=1e-12, atol=0)
        print(f"{name}: {len(rates)} rates and all params as with stock torch")


if __name__ == "__main__":
    main()
