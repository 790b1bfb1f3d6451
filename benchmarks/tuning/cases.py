"""What is measured: a rule over so many elements of a dtype, stepped with chosen knobs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

import fused_sched
from benchmarks.measure import Effort, Runner, Spread, copy_rate, copy_runner, interleave, ratios
from benchmarks.providers import captured, cosine
from benchmarks.tuning.knobs import Choice, Key, using
from fused_sched.engines import triton_engine
from fused_sched.tables import layout
from fused_sched.tables.params import ParamTable

TENSORS = 8
COPY = "copy"

TASKS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "Adam": ("Adam", "Adam", {}, 2),
    "SGD, momentum": ("SGD", "SGD", {"momentum": 0.9}, 1),
    "SGD": ("SGD", "SGD", {}, 0),
}
"""By the name in the rows: rule, optimizer, its options, its states."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One optimizer over so many elements of one dtype."""

    task: str
    dtype: str
    elements: int

    @property
    def key(self) -> Key:
        return Key(TASKS[self.task][0], 8 * DTYPES[self.dtype].itemsize)

    @property
    def bytes_moved(self) -> int:
        """Of a step: param and states read and written, the gradient read."""
        return (3 + 2 * TASKS[self.task][3]) * self.elements * DTYPES[self.dtype].itemsize

    @property
    def bytes_held(self) -> int:
        """Param, gradient and states."""
        return (2 + TASKS[self.task][3]) * self.elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Row:
    """One choice, or another engine, in one case; `to_present` is its time over that of what held.

    Ratios are taken within a round.
    """

    part: str
    task: str
    dtype: str
    elements: int
    choice: str
    us: float
    us_low: float
    us_high: float
    to_present: float
    gb_per_s: float
    copy_gb_per_s: float


class Trained:
    """One case's params and its fused pair, which every choice steps."""

    def __init__(self, case: Case, device: torch.device, engine: str) -> None:
        _, name, options, _ = TASKS[case.task]
        size, dtype = -(-case.elements // TENSORS), DTYPES[case.dtype]
        self.params = [torch.randn(size, device=device).to(dtype) for _ in range(TENSORS)]
        for param in self.params:
            param.grad = torch.randn(size, device=device).mul_(1e-3).to(dtype)
        with fused_sched.use_engine(engine):
            self.opt = getattr(fused_sched.optim, name)(self.params, lr=1e-4, **options)
            self.sched = cosine(fused_sched.lr_scheduler, self.opt)
            fused_sched.fuse(self.opt, self.sched)
            self.opt.prepare()
        (self.device_state,) = self.opt._ledger.mirror.host.device_states.values()

    def table(self) -> ParamTable:
        """Cut by the knobs as they are now."""
        return ParamTable(
            self.device_state.table.rows, self.device_state.device, self.device_state.name
        )

    def jobs(self) -> list[triton_engine.Job]:
        """What `triton_engine` compiles for the knobs as they are now."""
        device_state = self.device_state
        jobs: list[triton_engine.Job] = []
        with patch.object(triton_engine, "_compile", jobs.extend):
            device_state.engine.load(
                device_state.buffer,
                device_state.table,
                device_state.fused_program(),
                device_state.rule,
                [layout.NO_SCALER],
            )
        return jobs

    def runner(self) -> Runner:
        """A step with the knobs as they are now: on a GPU its replay."""
        device_state, table = self.device_state, self.table()
        grads, program = table.grad_addresses(), device_state.fused_program()

        def launch() -> None:
            device_state.engine.update(
                device_state.buffer,
                table,
                grads,
                program,
                device_state.rule,
                layout.COUNTED,
                None,
                None,
            )

        launch()  # sends the addresses
        step = captured(launch) if device_state.device.type == "cuda" else launch
        return Runner(step, alive=(self, table))


def measure(
    part: str,
    case: Case,
    choices: Mapping[str, Choice],
    device: torch.device,
    effort: Effort,
    others: Iterable[str] = (),
) -> list[Row]:
    """A row for each choice, the first of which holds now, and for each of the other engines."""
    runners = {COPY: copy_runner(device)} | chosen_runners(case, choices, device)
    for engine in others:
        runners[engine] = Trained(case, device, engine).runner()
    samples = interleave(runners, device, effort)
    base = samples[next(iter(choices))]
    copied = copy_rate(Spread.of(samples.pop(COPY)).median, device)
    rows = []
    for name, seconds in samples.items():
        spread = Spread.of([1e6 * one for one in seconds])
        rows.append(
            Row(
                *(part, case.task, case.dtype, case.elements, name),
                **spread.fields("us", 2),
                to_present=round(Spread.of(ratios(seconds, base)).median, 4),
                gb_per_s=round(case.bytes_moved / spread.median / 1e3, 1),
                copy_gb_per_s=round(copied, 1),
            )
        )
    return rows


def chosen_runners(
    case: Case, choices: Mapping[str, Choice], device: torch.device
) -> dict[str, Runner]:
    """A runner for each choice; all that they need is compiled at once."""
    trained = Trained(case, device, "triton")
    jobs: list[triton_engine.Job] = []
    for choice in choices.values():
        with using(choice, case.key, device):
            jobs += trained.jobs()
    triton_engine._compile({job[1]: job for job in jobs}.values())  # by their keys
    runners = {}
    for name, choice in choices.items():
        with using(choice, case.key, device):
            runners[name] = trained.runner()
    return runners
