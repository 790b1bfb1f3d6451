"""torch's own classes, bound before their names can be replaced.

A script is moved over to another framework's classes by assigning to torch's names
(``torch.optim.AdamW = ...``; here by :func:`fused_sched.swap`). What this package then looks up
as torch's must be torch's still, so it asks this module and never ``torch.optim``.
"""

from typing import Any

from torch import optim
from torch.optim import Optimizer, lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler


def _classes(module: Any, base: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and not name.startswith("_")
    }


OPTIMIZERS: dict[str, Any] = _classes(optim, Optimizer)
SCHEDULERS: dict[str, Any] = _classes(lr_scheduler, LRScheduler) | _classes(swa_utils, LRScheduler)

globals().update(OPTIMIZERS | SCHEDULERS)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"torch has no class {name!r}")
