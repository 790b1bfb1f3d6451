"""Three small networks with their data and loss, for training iterations that a graph replays."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        q, k, v = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class GPT2(nn.Module):
    """GPT-2's architecture, without dropout; the output layer is the embedding."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.blocks(self.token(tokens) + self.position.weight[: tokens.shape[1]])
        return functional.linear(self.norm(hidden), self.token.weight)


def block(width: int, heads: int) -> nn.Module:
    """Attention and a dense layer, each after a norm."""
    dense = (nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
    return nn.Sequential(
        Residual(nn.Sequential(nn.LayerNorm(width), Attention(width, heads))),
        Residual(nn.Sequential(nn.LayerNorm(width), *dense)),
    )


def mlp() -> nn.Module:
    """An actor as in reinforcement learning: SAC's two hidden layers of 256 on 17 observations."""
    return nn.Sequential(
        nn.Linear(17, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 6)
    )


def conv_net() -> nn.Module:
    """Six convolutions with batch norm on 32 x 32 images, ten classes."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        *((3, 32, 1), (32, 32, 1), (32, 64, 2)),
        *((64, 64, 1), (64, 128, 2), (128, 128, 1)),
    ):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


VOCABULARY, LENGTH = 8192, 128


def gpt2_small() -> nn.Module:
    """Six layers of width 256."""
    return GPT2(VOCABULARY, LENGTH, width=256, heads=4, layers=6)


def mean_square(out: Tensor, target: Tensor) -> Tensor:
    """Regression."""
    return functional.mse_loss(out, target)


def cross_entropy(out: Tensor, target: Tensor) -> Tensor:
    """Cross entropy over the last dimension, for images and for tokens."""
    return functional.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))


@dataclass(frozen=True)
class Network:
    """A module with one batch of data, the same in every iteration."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


def images() -> tuple[Tensor, Tensor]:
    """64 of them."""
    return torch.randn(64, 3, 32, 32), torch.randint(10, (64,))


def tokens() -> tuple[Tensor, Tensor]:
    """8 sequences."""
    return torch.randint(VOCABULARY, (8, LENGTH)), torch.randint(VOCABULARY, (8, LENGTH))


NETWORKS = {
    network.name: network
    for network in (
        Network("mlp", mlp, lambda: (torch.randn(256, 17), torch.randn(256, 6)), mean_square),
        Network("conv", conv_net, images, cross_entropy),
        Network("gpt2-small", gpt2_small, tokens, cross_entropy),
    )
}
