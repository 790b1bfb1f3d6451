"""``load_state_dict``: checked as a whole, then taken over in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .checkpoint import state_of
from .device_state import RELEASE
from .mirror import Mirror
from .state import StateKeeper
from .stepper import Stepper


class Loading:
    """One call of torch's ``load_state_dict``, from the state dict to the tables."""

    def __init__(self, mirror: Mirror, keeper: StateKeeper, stepper: Stepper) -> None:
        self._mirror = mirror
        self._keeper = keeper
        self._stepper = stepper
        self._groups = mirror.host.optimizer.param_groups
        self._given: dict[str, Any] = {}

    def see(self, _: Any, state_dict: dict[str, Any]) -> None:
        """torch's pre-hook, the last one: what is really loaded."""
        self._given = state_dict

    def take(self) -> None:
        """Once torch has put its groups in place: the checkpoint's own tensors.

        Raises:
            RuntimeError: a captured graph lacks a state that the checkpoint asks for.
            ValueError: the checkpoint does not fit.
        """
        groups = self._mirror.host.optimizer.param_groups
        _keep_options(self._mirror, self._groups, groups)
        _check_groups(self._mirror, self._groups, groups)
        state = state_of(self._given, groups, self._mirror.host.rule)
        self._keeper.replace(state, exposed=self._keeper.state_exposed)

    @contextmanager
    def around(self) -> Iterator[None]:
        """The call itself; if anything in it raises, nothing was loaded."""
        mirror, keeper = self._mirror, self._keeper
        before = keeper.state, keeper.state_exposed
        mirror.account.drop_cached()
        try:
            with mirror.host.suspend_sync:
                yield
        except BaseException:
            mirror.host.optimizer.param_groups = self._groups
            keeper.replace(*before)
            raise
        keeper.expose()
        self._stepper.load()


def _keep_options(
    mirror: Mirror, old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]
) -> None:
    """Optional keys that the checkpoint does not have stay as they are."""
    for before, after in zip(old, new, strict=True):
        for key in mirror.host.rule.optional:
            if key in before and key not in after:
                dict.__setitem__(after, key, dict.__getitem__(before, key))


def _check_groups(
    mirror: Mirror, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> None:
    rule = mirror.host.rule
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        try:
            mirror.host.encode(after)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The checkpoint's param group {number} is not one of "
                f"{type(mirror.host.optimizer).__name__}: {error!r}; nothing was loaded"
            ) from error
        if mirror.account.captured and len(rule.state_names(after)) > len(rule.state_names(before)):
            raise RuntimeError(
                f"Param group {number} of the checkpoint has more state, but {RELEASE}."
            )
