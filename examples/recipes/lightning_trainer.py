"""Lightning: swap the two classes in configure_optimizers; nothing else changes.

    python examples/recipes/lightning_trainer.py

Trains a small net with stock torch, with fused_sched, and with the schedule fused into the step:
plain, with gradient accumulation, with clipping, and resumed from a checkpoint. Compares the params
and what LearningRateMonitor wrote.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

import fused_sched

EPOCHS, TOTAL_STEPS = 4, 40
CASES = {"plain": {}, "accumulated": {"accumulate_grad_batches": 2}, "clipped": {}}
CASES["clipped"] = {"gradient_clip_val": 0.1}


class Net(lightning.LightningModule):
    """A small regression. `optim` and `schedulers` are torch's modules, or ours."""

    def __init__(self, optim, schedulers, fuse=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
        )
        self.optim, self.schedulers, self.fuse = optim, schedulers, fuse

    def training_step(self, batch, index):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.layers(inputs), targets)

    def configure_optimizers(self):
        opt = self.optim.AdamW(self.parameters(), lr=1e-2)
        sched = self.schedulers.OneCycleLR(opt, max_lr=1e-1, total_steps=TOTAL_STEPS)
        if self.fuse:
            fused_sched.fuse(opt, sched)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}


def loader():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randn(64, n, generator=generator) for n in (8, 1))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, targets), batch_size=8
    )


def fit(net, folder, checkpoint=None, epochs=EPOCHS, **options):
    """Train; return the params, and the lr after each logged step."""
    logger = CSVLogger(folder)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        logger=logger,
        callbacks=[LearningRateMonitor("step")],
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
        **options,
    )
    trainer.fit(net, loader(), ckpt_path=checkpoint)
    trainer.save_checkpoint(Path(folder) / "last.ckpt")
    lines = [line.split(",") for line in (Path(logger.log_dir) / "metrics.csv").read_text().split()]
    column = next(i for i, name in enumerate(lines[0]) if name.startswith("lr-"))
    return list(net.parameters()), [float(line[column]) for line in lines[1:] if line[column]]


def resumed(folder, *args):
    """Two epochs, then the rest in fresh objects from the checkpoint."""
    fit(Net(*args), folder, epochs=EPOCHS // 2)
    return fit(Net(*args), folder, checkpoint=Path(folder) / "last.ckpt")


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    stock = torch.optim, torch.optim.lr_scheduler
    ours = fused_sched.optim, fused_sched.lr_scheduler
    for name in (*CASES, "resumed"):
        results = []
        for modules in (stock, (*ours, False), (*ours, True)):
            with tempfile.TemporaryDirectory() as folder:
                if name == "resumed":
                    results.append(resumed(folder, *modules))
                else:
                    results.append(fit(Net(*modules), folder, **CASES[name]))
        for params, rates in results[1:]:
            torch.testing.assert_close(params, results[0][0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(rates, results[0][1], rtol=1e-12, atol=0)
        print(f"{name}: {len(results[0][1])} rates and all params as with stock torch")


if __name__ == "__main__":
    main()
