"""The step by which torch's checkpoints fill an empty state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


class CheckpointProbe:
    """Tells that step from a user's.

    ``torch.distributed.checkpoint`` (``_init_optim_state``) assigns lr 0 to every group, and
    gradients of zeros, and steps once; neither the params nor the schedule may move.
    """

    def __init__(self) -> None:
        self._zeroed: set[int] = set()  # groups whose lr was assigned 0 since the last step, by id
        self.stepped = False  # whether a user's step was ever made

    def note_lr(self, group: Any, value: Any) -> None:
        """An lr was assigned."""
        (self._zeroed.add if is_zero(value) else self._zeroed.discard)(id(group))

    def note_step(self) -> None:
        """A user's step was made."""
        self.stepped = True

    def forget(self) -> None:
        """What was assigned so far is none of a probe's."""
        self._zeroed.clear()

    @property
    def may_come(self) -> bool:
        """Whether the next step must be looked at."""
        return bool(self._zeroed)

    def comes(self, groups: Iterable[Any]) -> bool:
        """Whether the next step may be one, judging by the groups."""
        return self.may_come and not self.stepped and self._zeroed == {id(one) for one in groups}


def is_zero(value: Any) -> bool:
    """Whether a value of lr is 0; reads no device."""
    if isinstance(value, Tensor):
        return value.device.type == "cpu" and value.numel() == 1 and float(value) == 0.0
    return isinstance(value, int | float) and value == 0.0
