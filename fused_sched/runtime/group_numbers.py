"""A rule's group recurrences in the param groups: numbers that one step of a group hands the next.

Each param of a group carries them on the device, and all carry the same.
"""

from __future__ import annotations

from typing import Any

from .device_state import capturing
from .host import Host


class GroupNumbers:
    """Takes them from the devices at a read, and sends them after a write.

    Attributes:
        names: keys of the param groups.
    """

    def __init__(self, host: Host) -> None:
        self.names = host.rule.group_recurrences
        self._host = host
        self._first = len(host.rule.recurrences)

    def take(self) -> None:
        """Bring the groups up to date; waits for a device. During a capture they stay."""
        if not self.names or capturing():
            return
        groups = self._host.optimizer.param_groups
        for device_state in self._host.with_buffer():
            device_state.take_carried()
            for row in device_state.table.rows:
                _show(groups[row.group], self.names, device_state.carried_of(row)[self._first :])

    def send(self) -> None:
        """Give the devices what the groups say."""
        groups = self._host.optimizer.param_groups
        for device_state in self._host.with_buffer() if self.names else ():
            device_state.take_carried()
            for row in device_state.table.rows:
                device_state.set_carried(row.index, self.of(groups[row.group]), self._first)
            device_state.send_clock()

    def of(self, group: dict[str, Any]) -> list[float]:
        """A group's, as it says now."""
        return [float(dict.__getitem__(group, name)) for name in self.names]


def _show(group: dict[str, Any], names: tuple[str, ...], numbers: list[float]) -> None:
    """Past the group's own methods; an int stays one."""
    for name, number in zip(names, numbers, strict=True):
        count = type(dict.__getitem__(group, name)) is int
        dict.__setitem__(group, name, int(number) if count else number)
