"""``load_state_dict``: checked as a whole, then taken over in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .plan import RELEASE

if TYPE_CHECKING:
    from .ledger import Ledger


class Loading:
    """One call of torch's ``load_state_dict``, from the state dict to the tables."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._groups = ledger.optimizer.param_groups
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
        ledger = self._ledger
        groups = ledger.optimizer.param_groups
        _check_groups(ledger, self._groups, groups)
        ledger.keeper.state = ledger.keeper.taken(self._given, groups)

    @contextmanager
    def around(self) -> Iterator[None]:
        """The call itself; if anything in it raises, nothing was loaded."""
        ledger = self._ledger
        keeper = ledger.keeper
        before = keeper.state, keeper.shown
        ledger.drop_lean()
        ledger.loading = self
        try:
            with ledger.host_only():
                yield
        except BaseException:
            ledger.optimizer.param_groups = self._groups
            keeper.state, keeper.shown = before
            raise
        finally:
            ledger.loading = None
        keeper.shown = True
        ledger.stepper.load()


def _check_groups(
    ledger: Ledger, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> None:
    rules = ledger.rules
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        try:
            ledger.encode(after)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"The checkpoint's param group {number} is not one of {rules.__name__}: "
                f"{error!r}; nothing was loaded"
            ) from error
        if ledger.captured and len(rules._state_names(after)) > len(rules._state_names(before)):
            raise RuntimeError(
                f"Param group {number} of the checkpoint has more state, but {RELEASE}."
            )
