"""The shapes of a model's params: a small transformer's, or those of a checkpoint file."""

from __future__ import annotations

import json
import math
import pickle
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fused_sched.tables.local import SUPPORTED

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MOST_HEADER = 100_000_000  # bytes; the format's own limit

Spec = tuple[tuple[int, ...], torch.dtype]
"""(shape, dtype) of one param."""


@dataclass(frozen=True)
class Shapes:
    """What is to be stepped.

    Attributes:
        name: for the table.
        specs: (shape, dtype) of every param.
        left_out: tensors of the file that no optimizer updates: integers, float8.
    """

    name: str
    specs: Sequence[Spec]
    left_out: int = 0

    @property
    def count(self) -> int:
        """Elements of all params."""
        return sum(math.prod(shape) for shape, _ in self.specs)

    @property
    def bytes(self) -> int:
        """Of all params."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.specs)

    def cast(self, dtype: torch.dtype) -> Shapes:
        """The same with every param in one dtype."""
        return Shapes(self.name, [(shape, dtype) for shape, _ in self.specs], self.left_out)


def transformer(layers: int = 6, width: int = 384, vocabulary: int = 8192) -> Shapes:
    """GPT-2's tensors, smaller: 13.8 million params in 75 tensors, float32."""
    norm = [(width,), (width,)]
    attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
    mlp = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    shapes = [(vocabulary, width), *(norm + attention + norm + mlp) * layers, *norm]
    name = f"a transformer of {layers} layers, {width} wide"
    return Shapes(name, [(shape, torch.float32) for shape in shapes])


def of_checkpoint(path: Path) -> Shapes:
    """The floating-point tensors of a checkpoint; their values are not read.

    A model's floating-point buffers are among them: a state dict does not tell them from params.

    Args:
        path: ``.safetensors`` (its header alone is read), a ``.safetensors.index.json`` beside its
            shards, or what ``torch.save`` wrote: a state dict, or a dict with one under ``model``,
            ``state_dict``, ``model_state_dict`` or ``module``.

    Raises:
        ValueError: the file is something else, or holds no floating-point tensor.
        OSError: it cannot be read.
    """
    if path.suffix == ".safetensors":
        found = _of_safetensors(path)
    elif path.name.endswith(".index.json"):
        found = [one for shard in _shards(path) for one in _of_safetensors(shard)]
    else:
        found = _of_torch(path)
    specs = [(shape, dtype) for shape, dtype in found if dtype in SUPPORTED and 0 not in shape]
    if not specs:
        raise ValueError(f"{path} holds no floating-point tensor")
    return Shapes(path.name, specs, len(found) - len(specs))


# -- safetensors ---------------------------------------------------------------------------------


def _of_safetensors(path: Path) -> list[tuple[tuple[int, ...], Any]]:
    header = _header(path)
    try:
        return [
            (tuple(map(_size, tensor["shape"])), _DTYPES.get(tensor["dtype"]))
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a safetensors file: its header lacks {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _size(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is not the size of a tensor")
    return number


def _header(path: Path) -> Any:
    """The JSON at the start of a file, after the 8 bytes of its length."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 0 < length <= min(_MOST_HEADER, path.stat().st_size - 8):
            raise ValueError(f"{path} is not a safetensors file: a header of {length} bytes")
        try:
            return json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _shards(path: Path) -> list[Path]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        return [path.parent / name for name in dict.fromkeys(names)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an index of safetensors files: {error}") from error


# -- torch.save ----------------------------------------------------------------------------------


def _of_torch(path: Path) -> list[Spec]:
    state = _loaded(path)
    for key in ("model", "state_dict", "model_state_dict", "module"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    try:
        return [(tuple(tensor.shape), tensor.dtype) for tensor in _tensors(state)]
    except RecursionError as error:
        raise ValueError(f"{path} is not a state dict: it is nested in itself") from error


def _loaded(path: Path) -> Any:
    """The file's objects, without the tensors' values and without running its code."""
    for mmap in (True, False):  # files of before torch 1.6 cannot be mapped
        try:
            return torch.load(path, map_location="meta", weights_only=True, mmap=mmap)
        except OSError:
            raise
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than tensors, which could run code; save model.state_dict()"
            ) from error
        except Exception as error:  # of a file that is something else, the unpickler's own
            if not mmap or not isinstance(error, RuntimeError):
                raise ValueError(f"{path} is not a checkpoint of torch.save: {error}") from error


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
