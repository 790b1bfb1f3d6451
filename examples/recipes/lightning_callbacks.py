"""Lightning's callbacks that write into the optimizer: lr_find, BackboneFinetuning.

    python examples/recipes/lightning_callbacks.py

The learning-rate finder sets lr before each step and restores everything afterwards; finetuning
adds a param group in the middle of the run and moves its lr by itself. Both write floats into
`param_groups`, which reach the device at the next step. A fused schedule moves with each of the
finder's steps, as a stock one does.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.tuner import Tuner

import fused_sched

EPOCHS, UNFREEZE_AT = 4, 2
STOCK = torch.optim, torch.optim.lr_scheduler
OURS = fused_sched.optim, fused_sched.lr_scheduler


class Net(lightning.LightningModule):
    """A backbone and a head. `optim` and `schedulers` are torch's modules, or ours."""

    def __init__(self, optim, schedulers, fuse=False):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh())
        self.head = torch.nn.Linear(16, 1)
        self.optim, self.schedulers, self.fuse = optim, schedulers, fuse
        self.lr = 1e-2
        self.rates = []

    def training_step(self, batch, index):
        inputs, targets = batch
        return torch.nn.functional.mse_loss(self.head(self.backbone(inputs)), targets)

    def configure_optimizers(self):
        trained = [param for param in self.parameters() if param.requires_grad]
        opt = self.optim.SGD(trained, lr=self.lr, momentum=0.9)
        sched = self.schedulers.StepLR(opt, step_size=5, gamma=0.9)
        if self.fuse:
            fused_sched.fuse(opt, sched)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": sched, "interval": "step"}}

    def on_train_batch_end(self, outputs, batch, index):
        self.rates += [group["lr"] for group in self.optimizers().param_groups]


def loader():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = (torch.randn(64, n, generator=generator) for n in (8, 1))
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs, targets), batch_size=8
    )


def trainer(folder, **options):
    return lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def found(folder, *modules):
    """Let the finder choose lr, then train with it: losses and params; the rates of both."""
    net, fit = Net(*modules), trainer(folder)
    finder = Tuner(fit).lr_find(net, loader(), num_training=40, attr_name="lr")
    net.rates.clear()
    fit.fit(net, loader())
    losses = torch.tensor(finder.results["loss"])
    return [losses, *net.parameters()], [*finder.results["lr"], net.lr, *net.rates]


def finetuned(folder, *modules):
    """Freeze the backbone, then train it too, in a group of its own with an lr of its own."""
    net = Net(*modules)
    thaw = BackboneFinetuning(
        UNFREEZE_AT, lambda epoch: 1.5, backbone_initial_ratio_lr=0.1, verbose=False
    )
    trainer(folder, callbacks=[thaw]).fit(net, loader())
    return list(net.parameters()), net.rates


def main():
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for run in (found, finetuned):
        results = []
        for modules in (STOCK, (*OURS, False), (*OURS, True)):
            with tempfile.TemporaryDirectory() as folder:
                results.append(run(Path(folder), *modules))
        (params, rates), *ours = results
        for our_params, our_rates in ours:
            torch.testing.assert_close(our_params, params, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(our_rates, rates, rtol=1e-12, atol=0)
        print(f"{run.__name__}: {len(rates)} rates and all params as with stock torch")


if __name__ == "__main__":
    main()
