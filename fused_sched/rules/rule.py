"""What an optimizer's class states about its step, as the rest of the package reads it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .numbers import PLAIN, number
from .reader import RuleError
from .source import RuleSource, from_functions
from .tuning import DEFAULT_TUNINGS, Tuning

LOG = "log_"
"""``log_<name>`` is the logarithm of column ``<name>``, also while a schedule moves that."""


@dataclass(frozen=True, eq=False)
class Rule:
    """An optimizer's arithmetic, and where its numbers come from.

    Attributes:
        name: the class that states the arithmetic: a subclass that changes none shares it.
        coefficients: ``(lr, ..., step)`` to a tuple of numbers.
        apply: ``(p, g, *states, c)`` to the new ``(p, *states)``, of each element.
        columns: the hyperparameters that the device keeps, ``lr`` first.
        keys: the columns that each key of a param group fills.
        states: the names of the state tensors in ``optimizer.state``, in the rule's order, and what
            a param group must have for them: True, or the key that must not be 0 or False.
        optional: keys that a param group may lack, or hold None under, and what counts then.
        recurrences: numbers of a param, each also in ``optimizer.state``, which a step takes from
            the one before.
        group_recurrences: such numbers of a group, each also a key of it.
        counts_steps: ``optimizer.state`` has torch's ``step``.
        tunings: how Triton compiles it: the class's rows and the default ones.
        source: both functions as they were when the class was defined; None of the package's own.
    """

    name: str
    coefficients: Callable[..., Any]
    apply: Callable[..., Any]
    columns: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]
    states: Mapping[str, bool | str]
    optional: Mapping[str, float]
    recurrences: tuple[str, ...]
    group_recurrences: tuple[str, ...]
    counts_steps: bool
    tunings: dict[int | tuple[int, tuple[int, int]], Tuning]
    source: RuleSource | None

    @property
    def carried(self) -> tuple[str, ...]:
        """All recurrences: parameters of ``coefficients`` before ``step``, and its last results."""
        return (*self.recurrences, *self.group_recurrences)

    @property
    def is_built_in(self) -> bool:
        """Whether it is the package's own, which the installed library has compiled."""
        return self.source is None

    @property
    def required(self) -> int:
        """How many states, from the first on, every group keeps."""
        conditions = list(self.states.values())
        return next((i for i, c in enumerate(conditions) if c is not True), len(conditions))

    def tuning(self, bits: int, capability: tuple[int, int]) -> Tuning:
        """How it is compiled for a GPU, where the arrays' widths give these ``tuning_bits``."""
        return self.tunings.get((bits, capability), self.tunings[bits])

    def check_keys(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise KeyError for a hyperparameter that no default and no group gives."""
        for i, group in enumerate(groups):
            conditions = (when for when in self.states.values() if isinstance(when, str))
            for key in (*self.keys, *conditions, *self.group_recurrences):
                if key not in group and key not in self.optional:
                    columns = ", ".join(self.keys.get(key, ()))
                    asks = f"{self.name}.coefficients({columns}) asks for {key!r}"
                    raise KeyError(
                        f"{asks if columns else self.name}: param group {i} lacks {key!r}; add it "
                        "to the defaults that the constructor passes on"
                    )

    def encode(self, group: Mapping[str, Any]) -> list[float]:
        """A group's values in the order of the columns."""
        # One loop that calls no Python for a plain number: a process's first step() pays for it.
        encoded = []
        for key, index, logs in self._places:
            if index is not None:
                value = _element(group, key, index)
            else:
                value = self.value(group, key) if key in self.optional else group[key]
            value = float(value) if type(value) in PLAIN else number(key, value)
            encoded.append(_log(value) if logs else value)
        return encoded

    @functools.cached_property
    def _places(self) -> list[tuple[str, int | None, bool]]:
        """Of each column: the key of a group, the number in its tuple, and whether it is a log."""
        whole = self.optional
        return [
            (*_key(name.removeprefix(LOG), whole), name.startswith(LOG)) for name in self.columns
        ]

    def value(self, group: Mapping[str, Any], key: str) -> Any:
        """What a group holds under a key; the default of an optional one that it does not hold."""
        value = group[key] if key in group or key not in self.optional else None
        return self.optional.get(key) if value is None else value

    def asked(self, group: Mapping[str, Any]) -> list[str]:
        """The optional keys under which a group holds another value than their default."""
        return [key for key in self.optional if self.value(group, key) != self.optional[key]]

    def decode(self, group: dict[str, Any], column: str, value: float) -> None:
        """Put a column's value into a group, if it is another than the group's.

        Past the group's own methods, which would send it to the device.
        """
        key, index = _key(column, self.optional)
        here: Any = dict.get(group, key)
        here = self.optional.get(key) if here is None else here
        if index is None:
            if not isinstance(here, Tensor) and here != value:
                dict.__setitem__(group, key, value)
            return
        if here[index] != value:
            values = list(here)
            values[index] = value
            dict.__setitem__(group, key, tuple(values))

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The states that a param of this group has."""
        states = self.states.items()
        return tuple(n for n, when in states if when is True or self.value(group, str(when)))


def rule_of(cls: type[Any]) -> Rule | None:
    """The rule that a class of optimizers states or inherits; None of an abstract one.

    Raises:
        RuleError: one of the two functions is missing, or is no arithmetic that a kernel knows.
    """
    functions = {name: getattr(cls, name, None) for name in ("coefficients", "rule")}
    missing = [name for name, function in functions.items() if function is None]
    if len(missing) == 2:
        return None
    if missing:
        raise RuleError(f"{cls.__name__} states no {missing[0]}(); see docs/add_optimizer.md")
    coefficients, apply = functions.values()
    assert coefficients is not None and apply is not None
    if not isinstance(cls.states, Mapping):
        raise RuleError(f"{cls.__name__}.states is a dict, as {{'exp_avg': True}}: {cls.states!r}")
    name = next(c.__name__ for c in cls.__mro__ if functions.keys() & vars(c).keys())
    carried = tuple(cls.recurrences), tuple(cls.group_recurrences)
    source = None
    if not all(f.__module__.startswith("fused_sched.optim.") for f in (coefficients, apply)):
        source = _checked(cls, from_functions(name, coefficients, apply, *carried))
    columns = tuple(inspect.signature(coefficients).parameters)[: -1 - len(sum(carried, ()))]
    return Rule(
        name=name,
        coefficients=coefficients,
        apply=apply,
        columns=columns,
        keys=_keys(columns, cls.optional),
        states=cls.states,
        optional=_optional(cls, columns),
        recurrences=carried[0],
        group_recurrences=carried[1],
        counts_steps=cls.counts_steps,
        tunings={**DEFAULT_TUNINGS, **cls.tunings},
        source=source,
    )


def _checked(cls: type[Any], source: RuleSource) -> RuleSource:
    if len(source.states) != len(cls.states):
        raise RuleError(
            f"{cls.__name__}.states names {len(cls.states)} tensors, but its rule() takes "
            f"{len(source.states)} between the gradient and the coefficients"
        )
    return source


def _optional(cls: type[Any], columns: tuple[str, ...]) -> Mapping[str, float]:
    read = {*columns, *cls.states.values()}
    for key in cls.optional:
        if key not in read:
            raise RuleError(
                f"{cls.__name__}.optional has {key!r}, which neither its coefficients() take nor a "
                "state depends on"
            )
    return dict(cls.optional)


def _keys(columns: tuple[str, ...], whole: Container[str]) -> dict[str, tuple[str, ...]]:
    keys: dict[str, tuple[str, ...]] = {}
    for name in columns:
        key = _key(name.removeprefix(LOG), whole)[0]
        keys[key] = (*keys.get(key, ()), name)
    return keys


def _key(column: str, whole: Container[str]) -> tuple[str, int | None]:
    """Which key of a param group a column is of: ``beta1`` is the first of ``betas``.

    Args:
        whole: names that are keys as they stand.
    """
    if column[-1] in "123456789" and column not in whole:
        return f"{column[:-1]}s", int(column[-1]) - 1
    return column, None


def _element(group: Mapping[str, Any], key: str, index: int) -> Any:
    value = group[key]
    if index >= len(value):
        raise ValueError(f"param_group[{key!r}] has {len(value)} values, not {index + 1}")
    return value[index]


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
