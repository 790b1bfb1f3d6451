"""``swap``: torch's names for this package's classes, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, TracebackType
from typing import Any

from fused_sched import lr_scheduler, optim, stock

OPTIMIZERS: dict[type, Any] = {
    theirs: getattr(optim, name)
    for name, theirs in stock.OPTIMIZERS.items()
    if name in optim.__all__ and issubclass(getattr(optim, name), theirs)
}
"""Ours, by the class of torch whose place it takes."""

SCHEDULERS: dict[type, type] = {
    theirs: getattr(lr_scheduler, name)
    for name, theirs in stock.SCHEDULERS.items()
    if name in lr_scheduler.__all__ and name != "LRScheduler"
}


class Swap:
    """Torch's names while they mean our classes; ends with ``restore()`` or its ``with`` block.

    Attributes:
        names: what was replaced, as ``"torch.optim.AdamW"``, sorted.
    """

    def __init__(self) -> None:
        self._places = list(_places())
        for module, name, _, ours in self._places:
            setattr(module, name, ours)
        self.names = sorted(f"{module.__name__}.{name}" for module, name, *_ in self._places)

    def restore(self) -> None:
        """Give torch's names back; one that was assigned since is left as it is."""
        for module, name, theirs, ours in self._places:
            if vars(module).get(name) is ours:
                setattr(module, name, theirs)
        self._places = []

    def __enter__(self) -> Swap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()


def swap() -> Swap:
    """Let torch's own names mean this package's classes, for code that cannot be changed.

    The optimizers of ``torch.optim`` that there are here, the schedulers of
    ``torch.optim.lr_scheduler`` and ``torch.optim.swa_utils.SWALR``, in those modules and in the
    files behind them (``torch.optim.adamw.AdamW``). Call it before the code that is meant is
    imported::

        with fused_sched.swap():
            import train
            train.main()

    Returns:
        The swap: a context manager, or to be ended with ``restore()``. Of several, one inside
        another, the outermost restores.

    What it does not reach: a name that was bound before, by ``from torch.optim import AdamW`` or
    as a default argument, goes on meaning torch's class. While swapped ``torch.optim.AdamW`` *is*
    ``fused_sched.optim.AdamW``: an optimizer or scheduler made from torch's class before is no
    instance of it, and cannot be pickled whole (its ``state_dict()`` can). What was made while
    swapped stays ours afterwards, and is an instance of torch's class, of which ours is a
    subclass.
    """
    return Swap()


def _places() -> Iterator[tuple[ModuleType, str, type, type]]:
    """(module, name, torch's class, ours) of every name in torch.optim that has one of ours."""
    ours = {**OPTIMIZERS, **SCHEDULERS}
    loaded = [(name, module) for name, module in sys.modules.items() if module is not None]
    for path, module in loaded:
        if path == "torch.optim" or path.startswith("torch.optim."):
            for name, value in list(vars(module).items()):
                if isinstance(value, type) and value in ours:
                    yield module, name, value, ours[value]
