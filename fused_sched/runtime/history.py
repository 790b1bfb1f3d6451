"""What the launches used, read on demand."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from .device_state import refuse_capturing
from .mirror import Mirror
from .rings import Rings


class History:
    """The values that the last steps used, kept without a sync, also by replays of a graph.

    Made by ``scheduler.history(capacity)``, and kept until ``close()``, also by the optimizer. Each
    optimizer step that is made writes one entry: a step that a GradScaler stops writes none. The
    host reads only in ``drain()``.

    Attributes:
        capacity: steps that the ring holds, 8 bytes per step, group and name.
        names: of the hyperparameters kept: ``"lr"``, and ``"momentum"`` or ``"beta1"`` where the
            schedule cycles it.
        missed: steps whose values were overwritten before a ``drain()``.
    """

    def __init__(self, mirror: Mirror, names: Sequence[str], capacity: int) -> None:
        self._mirror = weakref.ref(mirror)
        self._rings = Rings(names, capacity)
        mirror.host.schedules.histories.append(self._rings)
        try:
            mirror.sender.upload()
        except BaseException:
            mirror.host.schedules.histories.remove(self._rings)
            raise

    @property
    def capacity(self) -> int:
        return self._rings.capacity

    @property
    def names(self) -> tuple[str, ...]:
        return self._rings.names

    @property
    def missed(self) -> int:
        return self._rings.missed

    def drain(self) -> dict[str, Tensor]:
        """What the steps since the last ``drain()`` used, the last ``capacity`` of them.

        Waits for the device, once.

        Returns:
            ``"step"``: int64 [n], the steps' numbers, from 0 at the first one after
            ``history()``; and for each name float64 [n, groups] on the CPU, NaN where the group
            was not there yet.

        Raises:
            RuntimeError: the optimizer is gone, or a CUDA graph is being captured.
        """
        mirror = self._mirror()
        if mirror is None:
            raise RuntimeError("The optimizer of this history is gone; drain() before")
        refuse_capturing("history.drain()")
        mirror.account.refresh_clock()
        first, values = self._rings.drain(len(mirror.host.optimizer.param_groups))
        steps = torch.arange(first, first + len(values), device="cpu")
        return {"step": steps, **dict(zip(self.names, values.unbind(1)))}

    def close(self) -> None:
        """Keep nothing from here on: the rows leave the launch."""
        mirror = self._mirror()
        if mirror is not None and self._rings in mirror.host.schedules.histories:
            refuse_capturing("history.close()")
            mirror.refuse_if_captured("history.close()")
            mirror.refresh()
            mirror.account.refresh_clock()
            self._rings.leave()
            mirror.host.schedules.histories.remove(self._rings)
            mirror.sender.reprogram()
