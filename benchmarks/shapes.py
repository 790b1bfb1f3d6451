"""The shapes of known networks' parameters, from the architectures' arithmetic: no weights."""

from itertools import pairwise

Shape = tuple[int, ...]


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


def gpt2_shapes(width: int = 768, layers: int = 12) -> tuple[Shape, ...]:
    """GPT-2: 124M by default (148 tensors); XL is 1600 wide and 48 layers deep (580 tensors).

    Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). The output layer
    is the embedding, tied.
    """
    block = (
        *norm(width),
        *transposed_linear(width, 3 * width),
        *transposed_linear(width, width),
        *norm(width),
        *transposed_linear(width, 4 * width),
        *transposed_linear(4 * width, width),
    )
    return ((50257, width), (1024, width), *(block * layers), *norm(width))


def vit_block(width: int) -> tuple[Shape, ...]:
    """A transformer encoder block with a hidden layer of four times its width: 12 tensors."""
    return (
        *norm(width),
        *linear(width, 3 * width),
        *linear(width, width),
        *norm(width),
        *linear(width, 4 * width),
        *linear(4 * width, width),
    )


def vit_embedding(width: int) -> tuple[Shape, ...]:
    """Class token, positions and 16 x 16 patches of a 224 x 224 image."""
    return (1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)


def vit_b_shapes() -> tuple[Shape, ...]:
    """ViT-B/16 for ImageNet: 152 tensors, 86,567,656 parameters.

    Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020), table 1.
    """
    width = 768
    return (
        *vit_embedding(width),
        *(vit_block(width) * 12),
        *norm(width),
        *linear(width, 1000),
    )


def llama3_8b_shapes() -> tuple[Shape, ...]:
    """Llama-3-8B: 291 tensors, 8,030,261,248 parameters; no biases, the output layer not tied.

    Grattafiori et al., "The Llama 3 Herd of Models" (2024), table 3: 32 heads share 8 keys and
    values of 128.
    """
    width, keys, hidden, vocabulary = 4096, 8 * 128, 14336, 128256
    attention = ((width, width), (keys, width), (keys, width), (width, width))
    gated = ((hidden, width), (hidden, width), (width, hidden))
    block = (*attention, *gated, (width,), (width,))
    return ((vocabulary, width), *(block * 32), (width,), (vocabulary, width))


def split_by_rank(shapes: tuple[Shape, ...]) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """Matrices, then vectors."""
    matrices = tuple(shape for shape in shapes if len(shape) > 1)
    vectors = tuple(shape for shape in shapes if len(shape) == 1)
    return matrices, vectors
