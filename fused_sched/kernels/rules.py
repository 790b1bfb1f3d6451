"""An optimizer's rule, as the update kernel calls it.

``Rule.coefficients`` and ``Rule.apply`` of ``fused_sched.rules`` are plain Python. Here each
becomes a Triton function over the same source, in which the names of the arithmetic mean Triton's.
"""

import functools
import types
from typing import NamedTuple

import triton
import triton.language as tl
from triton import JITFunction

from fused_sched.rules.source import from_functions

from . import arithmetic


class Bound(NamedTuple):
    """What the update kernel is compiled with for one optimizer.

    Attributes:
        coefficients: ``(h, G, carried, params, step, C)`` to a tuple of numbers of type C, and of
            the next recurrences in float64. ``h`` points at the current half of the hyper record
            at the tensor's group, ``carried`` at that of the recurrences at the param; column c
            lies at ``h + c * G``, recurrence k at ``carried + k * params``.
        rule: ``(p, g, states, coefficients)`` to ``(p, states)``; it may return more states than
            it got, of which the kernel stores as many as there are.
        required: states that every group keeps; a later one may be missing in some groups.
        recurrences: how many there are.
        of_group: how many of them, the last ones, are a group's: they go on without a gradient.
    """

    coefficients: JITFunction
    rule: JITFunction
    required: int
    recurrences: int
    of_group: int


def bind(rule):
    """A ``fused_sched.rules.Rule`` for the kernel."""
    if rule.source is not None:
        carried = rule.recurrences, rule.group_recurrences
        now = from_functions(rule.name, rule.coefficients, rule.apply, *carried)
        if now.text != rule.source.text:  # Triton reads the file at this time
            raise RuntimeError(
                f"{rule.name}'s file has changed since it was imported; import again"
            )
    counts = len(rule.columns), len(rule.states), len(rule.carried), len(rule.group_recurrences)
    return _bound(rule.coefficients, rule.apply, *counts, rule.required)


@functools.cache
def _bound(coefficients, apply, columns, states, recurrences, of_group, required):
    narrow = tl.float64 if recurrences else tl.float32  # an error would add up
    names = {
        "NARROW": _over(coefficients, arithmetic.COEFFICIENTS[narrow]),
        "WIDE": _over(coefficients, arithmetic.COEFFICIENTS[tl.float64]),
        "COLUMNS": tl.constexpr(columns),
        "RECURRENCES": tl.constexpr(recurrences),
        "APPLY": _over(apply, arithmetic.ELEMENTS),
        "STATES": tl.constexpr(states),
    }
    return Bound(_over(_coefficients, names), _over(_rule, names), required, recurrences, of_group)


def _over(function, names):
    """A Triton function of a Python function's source, in which ``names`` mean what they say."""
    names = {"tl": tl, "__name__": function.__module__, **names}
    return triton.jit(types.FunctionType(function.__code__, names, function.__name__))


# What `_bound` puts into the two functions below.
COLUMNS = RECURRENCES = STATES = NARROW = WIDE = APPLY = None


def _coefficients(h, G, carried, params, step, C: tl.constexpr):
    columns = ()
    for k in tl.static_range(COLUMNS):
        columns += (tl.load(h + k * G),)
    for k in tl.static_range(RECURRENCES):
        columns += (tl.load(carried + k * params),)
    if C == tl.float64:
        exact = WIDE(*columns, step.to(tl.float64))
    else:
        exact = NARROW(*columns, step.to(tl.float64))
    rounded = ()
    for k in tl.static_range(len(exact) - RECURRENCES):
        rounded += (tl.full((), exact[k], C),)  # a literal too, which a cast would make float32
    for k in tl.static_range(RECURRENCES):
        rounded += (tl.full((), exact[len(exact) - RECURRENCES + k], tl.float64),)
    return rounded


def _rule(p, g, states, c):
    for _ in tl.static_range(STATES - len(states)):  # those that the launch has none of
        states += (tl.zeros(p.shape, p.dtype),)
    results = APPLY(p, g, *states, c)
    states = ()
    for k in tl.static_range(STATES):
        states += (results[1 + k],)
    return results[0], states
