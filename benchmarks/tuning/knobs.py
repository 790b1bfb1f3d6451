"""The knobs of a Triton launch: their values, and how to set them for the launches to come."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from fused_sched import optim
from fused_sched.rules.rule import Rule
from fused_sched.rules.tuning import Tuning
from fused_sched.tables import layout


class Choice(NamedTuple):
    """A value of each knob, see `fused_sched/rules/tuning.py` and `tables/layout.py`."""

    vectors: int
    registers: int
    waves: int
    ticket: str


class Key(NamedTuple):
    """What shares a row of `tunings`: the name of a rule, and the bits of the widest dtype."""

    rule: str
    bits: int


@dataclass(frozen=True)
class Part:
    """Values of some knobs that are tried beside each other.

    Attributes:
        values: of those knobs, by name.
        sizes: which of the sizes it is measured at.
        apart: whether each `Key` has a choice of its own.
    """

    name: str
    values: Sequence[Mapping[str, Any]]
    sizes: slice
    apart: bool = False


PARTS = (
    Part(
        "loads and registers",
        [
            {"vectors": vectors, "registers": registers}
            for vectors, registers in itertools.product((1, 2), (40, 48, 56, 64, 72, 80, 96))
        ],
        slice(1, 2),
        apart=True,
    ),
    Part("waves", [{"waves": waves} for waves in (4, 8, 16, 32, 64)], slice(None)),
    Part("ticket", [{"ticket": order} for order in ("relaxed", "acq_rel")], slice(2)),
)


def said(choice: Choice, part: Part) -> str:
    """The knobs of a part, for example `vectors 2, registers 64`."""
    names = part.values[0]
    return ", ".join(f"{name} {getattr(choice, name)}" for name in names)


def capability(device: torch.device) -> tuple[int, int]:
    """As `Rule.tuning` takes it; of a CPU, that of the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def _class(rule: str) -> Any:
    return getattr(optim, rule)


def _rule(key: Key) -> Rule:
    return _class(key.rule)._rule


def present(key: Key, device: torch.device) -> Choice:
    """What holds now."""
    tuning = _rule(key).tuning(key.bits, capability(device))
    return Choice(tuning.vectors, tuning.registers, layout.WAVES, layout.TICKET_ORDER)


@contextmanager
def using(choice: Choice, key: Key, device: torch.device) -> Iterator[None]:
    """Within, tables are cut and kernels are compiled by this choice."""
    tuning = Tuning(choice.vectors, choice.registers)
    with (
        patch.dict(_rule(key).tunings, {(key.bits, capability(device)): tuning}),
        patch.object(layout, "WAVES", choice.waves),
        patch.object(layout, "TICKET_ORDER", choice.ticket),
    ):
        yield


def lines_to_write(chosen: Mapping[Key, Choice], device: torch.device) -> str:
    """What to write into each rule's class, as `tunings`, and into tables/layout.py."""
    lines = []
    for rule in dict.fromkeys(key.rule for key in chosen):
        lines.append(f"# tunings of {rule}, in {_class(rule).__module__}")
        lines += [
            f"({key.bits}, {capability(device)}): "
            f"Tuning(vectors={one.vectors}, registers={one.registers}),"
            for key, one in chosen.items()
            if key.rule == rule
        ]
    one = next(iter(chosen.values()))
    lines += ["# fused_sched.tables.layout", f"WAVES = {one.waves}"]
    return "\n".join([*lines, f'TICKET_ORDER = "{one.ticket}"']) + "\n"
