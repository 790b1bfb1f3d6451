"""Transformers: hand both objects to the Trainer; nothing else changes.

    python examples/recipes/transformers_trainer.py

Trains a small net with stock torch and with fused_sched, with torch's cosine and with the schedule
of transformers' get_scheduler("linear"), and resumes from a checkpoint. Once the schedule is fused,
the Trainer's log shows the lr of the next step: it logs between opt.step() and sched.step().
"""

import logging
import tempfile
import warnings
from functools import partial

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

import fused_sched

STEPS, SAVED_AT = 16, 8


class Net(torch.nn.Module):
    """A linear regression that returns its loss, as the Trainer expects."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(8, 1)

    def forward(self, inputs, labels):
        outputs = self.layer(inputs)
        return {"loss": torch.nn.functional.mse_loss(outputs, labels), "logits": outputs}


def dataset():
    generator = torch.Generator().manual_seed(1)
    inputs, labels = (torch.randn(64, n, generator=generator) for n in (8, 1))
    return [{"inputs": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]


def train(folder, optim, schedule, fuse=False, checkpoint=None):
    """Return the params, the logged rates and the lr at the end."""
    net = Net()
    opt = optim.AdamW(net.parameters(), lr=1e-2)
    sched = schedule(opt)
    if fuse:
        fused_sched.fuse(opt, sched)
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_steps=SAVED_AT,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(net, arguments, train_dataset=dataset(), optimizers=(opt, sched))
    trainer.train(resume_from_checkpoint=checkpoint)
    assert type(sched.get_last_lr()[0]) is float  # the Trainer asks after each step: no sync
    history = trainer.state.log_history
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    return list(net.parameters()), rates, opt.param_groups[0]["lr"]


def cosine(schedulers, opt):
    return schedulers.CosineAnnealingLR(opt, T_max=20)


def linear(schedulers, opt):
    return get_scheduler("linear", opt, num_warmup_steps=3, num_training_steps=STEPS)


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for schedule in (cosine, linear):
        with tempfile.TemporaryDirectory() as folder:
            stock = partial(schedule, torch.optim.lr_scheduler)
            params, rates, last = train(folder, torch.optim, stock)
        for fuse in (False, True):
            ours = partial(schedule, fused_sched.lr_scheduler)
            with tempfile.TemporaryDirectory() as folder:
                whole = train(folder, fused_sched.optim, ours, fuse)
                checkpoint = f"{folder}/checkpoint-{SAVED_AT}"
                resumed = train(folder, fused_sched.optim, ours, fuse, checkpoint)
            for result in (whole, resumed):
                torch.testing.assert_close(result[0], params, rtol=1e-5, atol=1e-6)
                assert abs(result[2] - last) < 1e-14
            torch.testing.assert_close(whole[1], rates, rtol=1e-12, atol=1e-16)
        print(f"{schedule.__name__}: {len(rates)} rates and all params as with stock torch")


if __name__ == "__main__":
    main()
