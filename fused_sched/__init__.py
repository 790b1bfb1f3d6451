"""The optimizer step and the learning-rate schedule of PyTorch training as one GPU launch.

Swap two imports: ``torch.optim`` for ``fused_sched.optim``, ``torch.optim.lr_scheduler`` for
``fused_sched.lr_scheduler``. Then ``fused_sched.fuse(optimizer, scheduler)`` puts the schedule
into ``optimizer.step()``'s launch, where a captured CUDA graph replays it live.
"""

from fused_sched import engines, lr_scheduler, optim
from fused_sched.engines import use_engine
from fused_sched.explain import Explanation, explain
from fused_sched.fuse import fuse, unfuse
from fused_sched.swap import swap

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "__version__",
    "engines",
    "explain",
    "fuse",
    "lr_scheduler",
    "optim",
    "swap",
    "unfuse",
    "use_engine",
]
