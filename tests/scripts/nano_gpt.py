"""A language model's training in nanoGPT's manner: groups by dimension, ``fused`` looked for in
AdamW's signature, lr written into every group before the step, gradients clipped."""

import inspect
import math
import os
import sys
import time
from ast import literal_eval

import torch
import torch.nn as nn
from torch.nn import functional as F

max_iters = 30
warmup_iters = 5
lr_decay_iters = 25
learning_rate = 1e-2
min_lr = 1e-3
out_dir = ""

for argument in sys.argv[1:]:  # --key=value over the globals above
    assert argument.startswith("--")
    key, value = argument[2:].split("=")
    assert key in globals(), f"Unknown config key: {key}"
    globals()[key] = type(globals()[key])(literal_eval(value) if key != "out_dir" else value)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.proj(F.gelu(self.fc(self.ln(x))))


class Model(nn.Module):
    def __init__(self, vocabulary=17, width=16):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.wte.weight = self.head.weight

    def forward(self, idx, targets):
        x = self.wte(idx)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas):
        params = {name: p for name, p in self.named_parameters() if p.requires_grad}
        decay = [p for p in params.values() if p.dim() >= 2]
        nodecay = [p for p in params.values() if p.dim() < 2]
        groups = [
            {"params": decay, "weight_decay": weight_decay},
            {"params": nodecay, "weight_decay": 0.0},
        ]
        fused_available = "fused" in inspect.signature(torch.optim.AdamW).parameters
        extra = dict(fused=True) if fused_available else dict()
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, **extra)


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


torch.manual_seed(1337)
text = torch.randint(17, (512,))
model = Model()
optimizer = model.configure_optimizers(1e-1, learning_rate, (0.9, 0.95))
started = time.time()
for iter_num in range(max_iters):
    lr = get_lr(iter_num)
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr
    for _ in range(2):
        ix = torch.randint(len(text) - 9, (4,))
        x = torch.stack([text[i : i + 8] for i in ix])
        y = torch.stack([text[i + 1 : i + 9] for i in ix])
        (model(x, y) / 2).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
if out_dir:
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, os.path.join(out_dir, "ckpt.pt"))
print(f"lr {optimizer.param_groups[0]['lr']}")
