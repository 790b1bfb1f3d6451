"""Fabric: swap the two classes before setup(); nothing else changes.

    python examples/recipes/fabric_loop.py

Trains a small net with stock torch, with fused_sched, and with the schedule fused into the step:
with gradient accumulation and clipping, and restored from a checkpoint half-way.
"""

import logging
import tempfile
import warnings

import lightning
import torch

import fused_sched

STEPS, SAVED_AT, ACCUMULATED = 12, 6, 2
STOCK = torch.optim, torch.optim.lr_scheduler
OURS = fused_sched.optim, fused_sched.lr_scheduler


class Training:
    """A net, its optimizer and its schedule, set up by Fabric."""

    def __init__(self, optim, schedulers, fuse=False):
        self.fabric = lightning.Fabric(accelerator="cpu")
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        opt = optim.AdamW(net.parameters(), lr=1e-2)
        self.sched = schedulers.OneCycleLR(opt, max_lr=1e-1, total_steps=STEPS)
        if fuse:
            fused_sched.fuse(opt, self.sched)
        self.net, self.opt = self.fabric.setup(net, opt)

    def train(self, steps):
        """Return the lr after each step."""
        rates = []
        for step in steps:
            for part in range(ACCUMULATED):
                inputs, targets = batch(ACCUMULATED * step + part)
                loss = torch.nn.functional.mse_loss(self.net(inputs), targets)
                self.fabric.backward(loss / ACCUMULATED)
            self.fabric.clip_gradients(self.net, self.opt, max_norm=0.5)
            self.opt.step()
            self.sched.step()
            self.opt.zero_grad()
            rates += self.sched.get_last_lr()
        return rates

    @property
    def state(self):
        return {"net": self.net, "opt": self.opt, "sched": self.sched}

    def save(self, path):
        self.fabric.save(path, self.state)

    def load(self, path):
        self.fabric.load(path, self.state)


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(8, n, generator=generator) for n in (8, 1))


def whole(*modules):
    """All steps in one go: the params, and the rates."""
    training = Training(*modules)
    rates = training.train(range(STEPS))
    return list(training.net.parameters()), rates


def restored(*modules):
    """The second half in fresh objects, from a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        first = Training(*modules)
        rates = first.train(range(SAVED_AT))
        first.save(f"{folder}/half.ckpt")
        second = Training(*modules)
        second.load(f"{folder}/half.ckpt")
    rates += second.train(range(SAVED_AT, STEPS))
    return list(second.net.parameters()), rates


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    params, rates = whole(*STOCK)
    for run in (whole, restored):
        for fuse in (False, True):
            our_params, our_rates = run(*OURS, fuse)
            torch.testing.assert_close(our_params, params, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(our_rates, rates, rtol=1e-12, atol=0)
        print(f"{run.__name__}: {len(rates)} rates and all params as with stock torch")


if __name__ == "__main__":
    main()
