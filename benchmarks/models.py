"""The parameter shapes that are measured, computed from the architectures' arithmetic.

Only shapes: no forward pass, no weights, no torchvision or transformers. Counts are checked in
tests/test_benchmarks.py.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

Shape = tuple[int, ...]


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


def linear(inputs: int, outputs: int) -> tuple[Shape, ...]:
    """Weight and bias of a dense layer, in torch's layout."""
    return (outputs, inputs), (outputs,)


def norm(width: int) -> tuple[Shape, ...]:
    """Weight and bias of a batch or layer norm."""
    return (width,), (width,)


def transposed_linear(inputs: int, outputs: int) -> tuple[Shape, ...]:
    """Weight and bias of a dense layer as GPT-2 stores them."""
    return (inputs, outputs), (outputs,)


def conv_norm(inputs: int, outputs: int, size: int) -> tuple[Shape, ...]:
    """A square convolution without bias, and its batch norm."""
    return (outputs, inputs, size, size), *norm(outputs)


def mlp_shapes(widths: tuple[int, ...]) -> tuple[Shape, ...]:
    """Dense layers between neighbouring widths."""
    return tuple(shape for pair in pairwise(widths) for shape in linear(*pair))


def resnet50_shapes() -> tuple[Shape, ...]:
    """ResNet-50 for ImageNet: 161 tensors, 25,557,032 parameters.

    He et al., "Deep Residual Learning for Image Recognition" (2015), table 1.
    """
    shapes = list(conv_norm(3, 64, 7))
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += bottleneck(inputs, width, projected=block == 0)
            inputs = 4 * width
    return (*shapes, *linear(2048, 1000))


def bottleneck(inputs: int, width: int, projected: bool) -> tuple[Shape, ...]:
    """1 x 1, 3 x 3 and 1 x 1 convolutions; a stage's first block projects its shortcut."""
    outputs = 4 * width
    shortcut = conv_norm(inputs, outputs, 1) if projected else ()
    return (
        *conv_norm(inputs, width, 1),
        *conv_norm(width, width, 3),
        *conv_norm(width, outputs, 1),
        *shortcut,
    )


def gpt2_shapes() -> tuple[Shape, ...]:
    """GPT-2 124M: 148 tensors, 124,439,808 parameters; the output layer is the embedding, tied.

    Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    """
    width, layers = 768, 12
    block = (
        *norm(width),
        *transposed_linear(width, 3 * width),
        *transposed_linear(width, width),
        *norm(width),
        *transposed_linear(width, 4 * width),
        *transposed_linear(4 * width, width),
    )
    return ((50257, width), (1024, width), *(block * layers), *norm(width))


def vit_groups() -> tuple[Group, ...]:
    """ViT-Ti/16 under layer-wise lr decay: 28 groups, 152 tensors, 5,717,416 parameters.

    Dosovitskiy et al. (2020), width 192, 12 blocks. The groups are those of BEiT (Bao et al.,
    2021): embedding, 12 blocks and head, each split into weights (decayed) and the rest.
    """
    width = 192
    token, position, patch = (1, 1, width), (1, 197, width), (width, 3, 16, 16)
    block = (
        *norm(width),
        *linear(width, 3 * width),
        *linear(width, width),
        *norm(width),
        *linear(width, 4 * width),
        *linear(4 * width, width),
    )
    layers = [
        ((patch,), (token, position, (width,))),
        *[split_by_rank(block)] * 12,
        split_by_rank((*norm(width), *linear(width, 1000))),
    ]
    groups = []
    for depth, (decayed, undecayed) in enumerate(layers):
        scale = 0.75 ** (len(layers) - 1 - depth)
        groups += [Group(decayed, scale, 0.05), Group(undecayed, scale, 0.0)]
    return tuple(groups)


def split_by_rank(shapes: tuple[Shape, ...]) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Matrices, then vectors."""
    matrices = tuple(shape for shape in shapes if len(shape) > 1)
    vectors = tuple(shape for shape in shapes if len(shape) == 1)
    return matrices, vectors


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
    )
}
