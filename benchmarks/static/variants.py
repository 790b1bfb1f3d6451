"""The forms of the update kernel that are examined."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.static.targets import TARGETS
from fused_sched import optim
from fused_sched.rules.tuning import Tuning, tuning_bits

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "float64": 64}

Kind = tuple[str, str, str]
"""Dtypes of (param, grad, state)."""

KINDS: dict[str, tuple[Kind, ...]] = {
    "float32": (("float32",) * 3,),
    "bfloat16": (("bfloat16",) * 3,),
    "float16": (("float16",) * 3,),
    "bfloat16, float32 states": (("bfloat16", "bfloat16", "float32"),),
    "mixed": (("float32",) * 3, ("bfloat16",) * 3, ("float16",) * 3),
    "float64": (("float64",) * 3,),
}


@dataclass(frozen=True)
class Variant:
    """One compiled form: a rule, its tensors of state, the kinds of tensor it serves.

    With `scaler` it unscales the gradient for a GradScaler and writes it back.
    """

    rule: str
    states: int
    kinds: str
    scaler: bool = False

    @property
    def name(self) -> str:
        """For example `Adam, 2 states, scaler`."""
        plural = "s" * (self.states != 1)
        return f"{self.rule}, {self.states} state{plural}{', scaler' * self.scaler}"

    def loaded(self, kind: Kind) -> list[int]:
        """Bits of an element of each array that is read."""
        param, grad, state = kind
        return [BITS[name] for name in (param, grad, *[state] * self.states)]

    def stored(self, kind: Kind) -> list[int]:
        """Bits of an element of each array that is written."""
        param, grad, state = kind
        return [BITS[name] for name in (param, *[grad] * self.scaler, *[state] * self.states)]

    def bytes_per_element(self, kind: Kind) -> int:
        """What a step has to move."""
        return sum(self.loaded(kind) + self.stored(kind)) // 8


def tuning_of(variant: Variant, capability: tuple[int, int]) -> Tuning:
    """What a launch of this form is compiled with."""
    bits = [[BITS[name] for name in kind] for kind in KINDS[variant.kinds]]
    return getattr(optim, variant.rule)._rule.tuning(tuning_bits(bits), capability)


def accesses(bits: list[int], elements: int) -> dict[str, int]:
    """{width: count} of the accesses that move so many elements of each array once.

    They move a vector at a time, 128 bits of the kind's widest array, or all the elements.
    """
    counts: Counter[str] = Counter()
    for element in bits:
        width = min(128 // max(bits) * element, elements * element)
        counts[str(width)] += elements * element // width
    return dict(counts)


QUICK = [
    Variant("SGD", 0, "bfloat16"),
    Variant("SGD", 1, "bfloat16"),
    Variant("SGD", 1, "float32"),
    Variant("Adam", 2, "float32", scaler=True),
    Variant("Adam", 2, "bfloat16"),
    Variant("Adam", 2, "bfloat16, float32 states"),
    Variant("Adam", 2, "mixed"),
    Variant("Adam", 3, "float32"),
    Variant("Adam", 2, "float64"),
    Variant("NAdam", 2, "float32"),
    Variant("SGDScheduleFree", 1, "float32"),
]
"""Those that are nearest to a limit."""


def _others() -> Iterator[Variant]:
    """Every other rule, with the states that it always has and with all of them."""
    names = {getattr(optim, name).__dict__.get("rule") and name for name in optim.__all__}
    for name in sorted(filter(None, names - {"SGD", "Adam"})):
        rule = getattr(optim, name)._rule
        for states in sorted({rule.required, len(rule.states)}):
            yield from (Variant(name, states, kinds) for kinds in ("float32", "bfloat16"))


VARIANTS = [
    *(Variant("SGD", 0, kinds) for kinds in ("float32", "bfloat16")),
    *(Variant("SGD", 1, kinds) for kinds in KINDS),
    *(Variant("Adam", 2, kinds) for kinds in KINDS),
    *(Variant("Adam", 3, kinds) for kinds in KINDS),
    *(Variant("Adam", 2, kinds, scaler=True) for kinds in ("float32", "mixed")),
    *_others(),
]
"""SGD and Adam with every set of dtypes, the other rules with two."""

_BRANCHED = ("RMSprop", 3)
"""LLVM makes branches of its options, so that on AMD no single loop moves all arrays."""


def examined(variants: Iterable[Variant], targets: Iterable[str]) -> list[tuple[Variant, str]]:
    """Which variant is examined on which target: all but one."""
    return [
        (variant, target)
        for target in targets
        for variant in variants
        if TARGETS[target].backend == "cuda" or (variant.rule, variant.states) != _BRANCHED
    ]
