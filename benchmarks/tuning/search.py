"""Part after part, what is best with the others as chosen so far."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch

import fused_sched
from benchmarks.measure import Effort, release
from benchmarks.record import free_memory, record_here
from benchmarks.result import Result
from benchmarks.tuning.cases import DTYPES, TASKS, Case, Row, measure
from benchmarks.tuning.knobs import Choice, Key, Part, present, said

NOISE = 0.005
"""A gain below this share of the time settles nothing: what holds stays."""

CHOSEN = "chosen"
"""The last part: what is chosen beside what held before, and beside the other engines."""


def best(rows: Sequence[Row], holds: str) -> str:
    """The choice with the smallest geometric mean of its ratios; `holds` unless another gains."""
    scores = {
        name: math.fsum(math.log(row.to_present) for row in rows if row.choice == name)
        / sum(row.choice == name for row in rows)
        for name in dict.fromkeys(row.choice for row in rows)
    }
    winner = min(scores, key=scores.__getitem__)
    return winner if scores[winner] < math.log(1 - NOISE) else holds


@dataclass
class Search:
    """The choices so far and every row; `until` is a time of `time.monotonic`."""

    device: torch.device
    sizes: Sequence[int]
    effort: Effort
    until: float
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keys = dict.fromkeys(Case(task, dtype, 1).key for task in TASKS for dtype in DTYPES)
        self.chosen = {key: present(key, self.device) for key in keys}
        self.before = dict(self.chosen)

    def measured(
        self, part: str, sizes: Sequence[int], choices: Callable[[Key], Mapping[str, Choice]]
    ) -> list[tuple[Key, list[Row]]]:
        """The rows of every case of these sizes, while there is time and memory."""
        found = []
        for elements, dtype, task in itertools.product(sizes, DTYPES, TASKS):
            case = Case(task, dtype, elements)
            if why := self.obstacle(case):
                self.left_out[f"{part}: {task}, {dtype}, {elements:,}"] = why
                continue
            print(f"{part}: {task}, {dtype}, {elements:,}", file=sys.stderr, flush=True)
            others = self.engines() if part == CHOSEN else ()
            rows = measure(part, case, choices(case.key), self.device, self.effort, others)
            release(self.device)
            self.rows += rows
            found.append((case.key, rows))
        return found

    def engines(self) -> list[str]:
        """Others of ours that serve the device."""
        return ["native"] if fused_sched.engines.available(self.device)["native"] is None else []

    def obstacle(self, case: Case) -> str | None:
        """Why a case cannot be measured."""
        if time.monotonic() > self.until:
            return "no time was left"
        free = free_memory(self.device)
        if free is not None and 1.2 * (2 * case.bytes_held + 2**32) > free:  # two engines', a copy
            return "memory does not hold it"
        return None

    def settle(self, part: Part) -> None:
        """Measure one part, and choose."""

        def choices(key: Key) -> dict[str, Choice]:
            tried = [self.chosen[key], *(self.chosen[key]._replace(**one) for one in part.values)]
            return {said(one, part): one for one in dict.fromkeys(tried)}

        found = self.measured(part.name, self.sizes[part.sizes] or self.sizes[:1], choices)
        for key in self.chosen:
            here = [rows for other, rows in found if not part.apart or other == key]
            if here:
                name = best([row for rows in here for row in rows], said(self.chosen[key], part))
                self.chosen[key] = choices(key)[name]

    def result(self) -> Result:
        """What there is so far, with the choice in the record."""
        chosen = {f"{key.rule} {key.bits}": one._asdict() for key, one in self.chosen.items()}
        record = asdict(record_here(self.device)) | {"chosen": chosen}
        return Result(record, {}, self.left_out, self.rows)

    def confirm(self) -> None:
        """Measure what is chosen beside what held before."""
        self.measured(
            CHOSEN, self.sizes, lambda key: {"before": self.before[key], CHOSEN: self.chosen[key]}
        )
