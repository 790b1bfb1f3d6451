"""``capture``: CUDA graph capture; on CPU tensors a stand-in, so that tests run without a GPU.

The stand-in behaves as a capture does: kernels, copies and in-place operations are recorded and
do not run; ``replay()`` runs them on the same memory; what would wait for the device raises. What
is filled outside the capture is filled at once.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fused_sched.engines import triton_engine
from fused_sched.runtime.device_state import capturing
from fused_sched.tables import params


class RecordedGraph:
    """The operations of a capture on CPU tensors."""

    def __init__(self) -> None:
        self.operations: list[Callable[[], object]] = []
        self.nodes: Counter[str] = Counter()

    @torch.no_grad()
    def replay(self) -> None:
        for operation in self.operations:
            operation()


class _Recorder(TorchDispatchMode):
    """Records torch's operations; runs only those without an effect, for their results' shapes."""

    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a read of a tensor is not permitted while capturing")
        if func._schema.is_mutable:
            copies = func is torch.ops.aten.copy_.default
            self.graph.nodes["memcpy" if copies else "kernel"] += 1
            self.graph.operations.append(lambda: func(*args, **kwargs))
            return kwargs.get("out", args[0]) if func._schema.returns else None
        result = func(*args, **kwargs)
        self.graph.operations.append(lambda: _overwrite(result, func(*args, **kwargs)))
        return result


def _overwrite(result: Any, again: Any) -> None:
    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)


@contextmanager
def _recording(graph: RecordedGraph) -> Iterator[None]:
    launch, fill = triton_engine._launch, params.uncaptured

    def record(*arguments: Any) -> None:
        graph.operations.append(lambda: launch(*arguments))
        graph.nodes["kernel"] += 1

    def uncaptured(*arguments: Any) -> Tensor:
        with _disable_current_modes():
            return fill(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("fused_sched.") and vars(module).get("capturing") is capturing:
                patch.setattr(module, "capturing", lambda device=None: True)
        patch.setattr(triton_engine, "_launch", record)
        patch.setattr(params, "uncaptured", uncaptured)
        with _Recorder(graph):
            yield


def new_graph(device: torch.device, keep_graph: bool = False) -> Any:
    """A graph to capture into; whose nodes are to be counted is kept."""
    return torch.cuda.CUDAGraph(keep_graph) if device.type == "cuda" else RecordedGraph()


@contextmanager
def capture(graph: Any, **options: Any) -> Iterator[None]:
    """As ``torch.cuda.graph``, by default with its default error mode."""
    if isinstance(graph, RecordedGraph):
        with _recording(graph):
            yield
    else:
        with torch.cuda.graph(graph, **options):
            yield


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """The stream of PyTorch's warm-up recipe."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
