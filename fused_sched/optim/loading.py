"""``load_state_dict``: checked as a whole, then taken over in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .stepper import RELEASE

if TYPE_CHECKING:
    from .ledger import Ledger


@contextmanager
def loading(ledger: Ledger, given: list[dict[str, Any]]) -> Iterator[None]:
    """Around torch's ``load_state_dict``: its groups, but the checkpoint's own tensors.

    Args:
        given: filled within the block with the state dict that torch loads.

    Raises:
        RuntimeError: a captured graph lacks a state that the checkpoint asks for.
        ValueError: the checkpoint does not fit. Either way nothing was loaded.
    """
    optimizer, keeper = ledger.optimizer, ledger.keeper
    before = optimizer.param_groups, keeper.state, keeper.shown
    try:
        with ledger.host_only():
            yield
            groups = optimizer.param_groups
            _check_groups(ledger, before[0], groups)
            keeper.state = keeper.taken(given[-1], groups)
    except BaseException:
        optimizer.param_groups, keeper.state, keeper.shown = before
        raise
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
                f"The checkpoint's param group {number} has more state, but {RELEASE}."
            )
