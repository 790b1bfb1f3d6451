"""timm: hand its schedulers our optimizer; nothing else changes.

    python examples/recipes/timm_schedulers.py

timm's schedulers are no LRScheduler: they write floats into `param_groups`, once an epoch or once
an update, and the step adopts what they wrote. Trains a small net with stock torch and with
fused_sched, with each of timm's schedules.
"""

import warnings

import torch
from timm.scheduler import create_scheduler_v2

import fused_sched

EPOCHS, UPDATES = 8, 5
CASES = {
    "cosine": {"sched": "cosine", "warmup_epochs": 2, "warmup_lr": 1e-4, "min_lr": 1e-4},
    "cosine per update": {"sched": "cosine", "warmup_epochs": 2, "step_on_epochs": False},
    "noisy": {"sched": "cosine", "noise": 0.5, "min_lr": 1e-4},
    "multistep": {"sched": "multistep", "decay_milestones": [3, 6]},
    "poly": {"sched": "poly"},
    "step": {"sched": "step", "decay_epochs": 3},
    "tanh": {"sched": "tanh"},
    "plateau": {"sched": "plateau", "patience_epochs": 1, "warmup_epochs": 0},
}


def train(optim, options):
    """Return the params, and the lr of both groups after each update."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    groups = [
        {"params": net[0].parameters(), "lr_scale": 0.5},
        {"params": net[2].parameters(), "weight_decay": 0.0},
    ]
    opt = optim.AdamW(groups, lr=1e-2)
    sched, epochs = create_scheduler_v2(
        opt, num_epochs=EPOCHS, updates_per_epoch=UPDATES, **options
    )
    rates, updates = [], 0
    for epoch in range(epochs):
        for _ in range(UPDATES):
            inputs, targets = batch(updates)
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(net(inputs), targets)
            loss.backward()
            opt.step()
            updates += 1
            sched.step_update(num_updates=updates, metric=loss.item())
            rates += [group["lr"] for group in opt.param_groups]
        sched.step(epoch + 1, metric=1.0)  # never better: the plateau acts
    return list(net.parameters()), rates


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(8, n, generator=generator) for n in (8, 1))


def main():
    warnings.simplefilter("ignore")
    for name, options in CASES.items():
        params, rates = train(torch.optim, options)
        our_params, our_rates = train(fused_sched.optim, options)
        torch.testing.assert_close(our_params, params, rtol=1e-5, atol=1e-6)
        assert our_rates == rates
        assert len(set(rates)) > 2, f"{name}: nothing moved"
        print(f"{name}: {len(rates)} rates and all params as with stock torch")


if __name__ == "__main__":
    main()
