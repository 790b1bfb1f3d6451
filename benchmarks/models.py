"""The models that are measured: named lists of parameter shapes, in groups.

Only shapes: no forward pass, no weights, no torchvision or transformers. Counts are checked in
tests/test_benchmarks.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from benchmarks.shapes import (
    Shape,
    gpt2_shapes,
    linear,
    llama3_8b_shapes,
    mlp_shapes,
    norm,
    resnet50_shapes,
    split_by_rank,
    vit_b_shapes,
    vit_block,
    vit_embedding,
)


@dataclass(frozen=True)
class Group:
    """One parameter group; `lr_scale` multiplies the benchmark's lr."""

    shapes: tuple[Shape, ...]
    lr_scale: float = 1.0
    weight_decay: float = 0.01


@dataclass(frozen=True)
class Model:
    """A named list of parameter groups."""

    name: str
    groups: tuple[Group, ...]

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of all parameters, group after group."""
        return tuple(shape for group in self.groups for shape in group.shapes)

    @property
    def num_params(self) -> int:
        """Elements in all parameters."""
        return sum(map(prod, self.shapes))

    def describe(self) -> str:
        """For example `161 tensors, 1 group, 25,557,032 parameters`."""
        tensors, groups = len(self.shapes), len(self.groups)
        return (
            f"{tensors} tensor{'s' * (tensors > 1)}, {groups} group{'s' * (groups > 1)}, "
            f"{self.num_params:,} parameters"
        )


def vit_groups() -> tuple[Group, ...]:
    """ViT-Ti/16 under layer-wise lr decay: 28 groups, 152 tensors, 5,717,416 parameters.

    Dosovitskiy et al. (2020), width 192, 12 blocks. The groups are those of BEiT (Bao et al.,
    2021): embedding, 12 blocks and head, each split into weights (decayed) and the rest.
    """
    width = 192
    token, position, patch, bias = vit_embedding(width)
    layers = [
        ((patch,), (token, position, bias)),
        *[split_by_rank(vit_block(width))] * 12,
        split_by_rank((*norm(width), *linear(width, 1000))),
    ]
    groups = []
    for depth, (decayed, undecayed) in enumerate(layers):
        scale = 0.75 ** (len(layers) - 1 - depth)
        groups += [Group(decayed, scale, 0.05), Group(undecayed, scale, 0.0)]
    return tuple(groups)


def groups_of_one(shapes: Iterable[Shape]) -> tuple[Group, ...]:
    """A group for each tensor; vectors are not decayed."""
    return tuple(Group((shape,), weight_decay=0.01 * (len(shape) > 1)) for shape in shapes)


def one_group(name: str, shapes: tuple[Shape, ...]) -> Model:
    """A model whose parameters share all hyperparameters."""
    return Model(name, (Group(shapes),))


MODELS = {
    model.name: model
    for model in (
        one_group("10x64", ((64,),) * 10),
        one_group("1000x1000", ((1000,),) * 1000),
        one_group("mlp", mlp_shapes((784, 100, 50, 10))),
        one_group("resnet50", resnet50_shapes()),
        one_group("gpt2", gpt2_shapes()),
        one_group("64M", ((64 * 2**20,),)),
        Model("28groups", vit_groups()),
        one_group("10000x64", ((64,),) * 10_000),
        # RF-DETR gives each tensor a group of its own and comes to 465 (rf-detr#1409); the shapes
        # here are a stand-in: matrices as wide as its decoder, each with its bias.
        Model("465groups", groups_of_one((linear(256, 256) * 233)[:465])),
        one_group("vit-b", vit_b_shapes()),
        one_group("gpt2-xl", gpt2_shapes(width=1600, layers=48)),
        one_group("llama-3-8b", llama3_8b_shapes()),
    )
}

QUICK_MODELS = ("10x64", "1000x1000", "mlp", "resnet50", "gpt2", "64M", "28groups")
