"""The search for a launch's knobs, in Triton's interpreter: what it measures, chooses, writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Runner
from benchmarks.result import Result
from benchmarks.tuning import __main__ as command
from benchmarks.tuning import cases, search
from benchmarks.tuning.cases import COPY, Case, Row, Trained
from benchmarks.tuning.knobs import PARTS, Choice, Key, lines_to_write, present, using
from benchmarks.tuning.search import NOISE, Search, best
from fused_sched import optim
from fused_sched.engines import triton_engine
from fused_sched.rules.tuning import DEFAULT_TUNINGS, Tuning
from fused_sched.tables import layout
from tests.interpreter import quick

CPU = torch.device("cpu")
ADAM = Key("Adam", 32)


def row(choice: str, to_present: float) -> Row:
    """One in which only the ratio matters."""
    rest = {"us": 1.0, "us_low": 1.0, "us_high": 1.0, "gb_per_s": 1.0, "copy_gb_per_s": 1.0}
    return Row("waves", "Adam", "float32", 10, choice, to_present=to_present, **rest)


def test_the_smallest_geometric_mean_is_chosen() -> None:
    rows = [row("16", 1.0), row("8", 0.5), row("32", 0.8)]
    rows += [row("16", 1.0), row("8", 1.9), row("32", 0.8)]
    assert best(rows, "16") == "32"
    assert math.sqrt(0.5 * 1.9) > 0.8


def test_a_gain_within_the_noise_changes_nothing() -> None:
    assert best([row("16", 1.0), row("8", 1 - NOISE / 2)], "16") == "16"
    assert best([row("16", 1.0), row("8", 1 - 2 * NOISE)], "16") == "8"


def test_within_a_choice_tables_and_kernels_are_made_by_it() -> None:
    before = present(ADAM, CPU)
    choice = Choice(before.vectors + 1, 48, 2 * before.waves, "acq_rel")
    with using(choice, ADAM, CPU):
        assert present(ADAM, CPU) == choice
        assert optim.Adam._rule.tuning(32, (0, 0)) == Tuning(choice.vectors, 48)
        assert optim.Adam._rule.tuning(16, (0, 0)) == optim.Adam.tunings[16]
        assert optim.SGD._rule.tuning(32, (0, 0)) == optim.SGD.tunings[32]
    assert present(ADAM, CPU) == before


def test_a_class_states_the_rows_that_are_not_the_default() -> None:
    class Plain(optim.FusedOptimizer):
        @staticmethod
        def coefficients(lr, step):
            return (lr,)

        @staticmethod
        def rule(p, g, c):
            (lr,) = c
            return (p - lr * g,)

    class Tuned(Plain):
        tunings = {32: Tuning(4, 40), (32, (9, 0)): Tuning(1, 96)}

    assert Plain._rule.tunings == DEFAULT_TUNINGS
    assert Tuned._rule.tuning(32, (8, 0)) == Tuning(4, 40)
    assert Tuned._rule.tuning(32, (9, 0)) == Tuning(1, 96)
    assert Tuned._rule.tuning(16, (9, 0)) == DEFAULT_TUNINGS[16]


@pytest.mark.parametrize("task", cases.TASKS)
def test_bytes_of_a_case_are_those_of_its_optimizer(task: str) -> None:
    case = Case(task, "bfloat16", 80)
    with quick():
        trained = Trained(case, CPU, "triton")
    (device_state,) = trained.opt._ledger.mirror.host.device_states.values()
    assert case.bytes_moved == device_state.table.bytes_per_step()
    assert device_state.rule.name == case.key.rule
    held = sum(param.nbytes + param.grad.nbytes for param in trained.params)
    states = [s for m in device_state.table.rows for s in m.states if s is not None]
    assert case.bytes_held == held + sum(s.nbytes for s in states)


def test_a_step_with_a_choice_is_a_step() -> None:
    """Every choice steps the same params by the same rule."""
    with quick():
        trained = Trained(Case("SGD", "float32", 80), CPU, "triton")
        before = trained.params[0].detach().clone()
        expected = before - trained.params[0].grad * 1e-4
        with using(Choice(1, 64, 4, "acq_rel"), Key("SGD", 32), CPU):
            trained.runner()  # whose first launch is a step
    torch.testing.assert_close(trained.params[0].detach(), expected)


def test_every_choice_has_a_kernel_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the keys and options of what a GPU would compile; waves need none."""
    with quick():
        trained = Trained(Case("Adam", "float32", 80), CPU, "triton")
    monkeypatch.setattr(triton_engine, "_interpreting", lambda: False)
    before, keys, limits = present(ADAM, CPU), set(), set()
    others = [{"vectors": 4}, {"registers": 48}, {"ticket": "acq_rel"}, {"waves": 3}]
    for change in ({}, *others):
        with using(before._replace(**change), ADAM, CPU):
            _, key, _, options = trained.jobs()[0]
        keys.add(key)
        limits.add(options["maxnreg"])
    assert len(keys) == len(others) and limits == {before.registers, 48}


def test_every_part_tries_what_holds_and_knows_its_knobs() -> None:
    for part in PARTS:
        assert all(set(one) <= set(Choice._fields) for one in part.values)
    tried = {name for part in PARTS for one in part.values for name in one}
    assert tried == set(Choice._fields)


def test_the_search_measures_chooses_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """From end to end with few elements; what is measured is made up, so that a choice is due."""
    cost = {"vectors 1, registers 56": 0.5, "waves 8": 0.5, "chosen": 0.25, COPY: 2.0}

    def made_up(runners: Mapping[str, Runner], *_: object) -> dict[str, list[float]]:
        if "chosen" in runners:
            runners["chosen"].step()
        return {name: [cost.get(name, 1.0)] * 2 for name in runners}

    monkeypatch.setattr(cases, "interleave", made_up)
    monkeypatch.setattr(cases, "TENSORS", 2)
    monkeypatch.setattr(cases, "copy_runner", lambda device: Runner(lambda: None))
    with quick():
        assert command.main(["--quick", "--elements", "16", "40", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = printed.partition("# tunings of Adam, in fused_sched.optim.adam\n")[2].partition("#")[0]
    assert "(32, (0, 0)): Tuning(vectors=1, registers=56),\n" in rows
    assert "WAVES = 8" in printed and f'TICKET_ORDER = "{layout.TICKET_ORDER}"' in printed
    (saved,) = tmp_path.glob("tuning-*.json")
    result = Result.load(saved, Row)
    assert {one.part for one in result.rows} == {*(part.name for part in PARTS), "chosen"}
    assert {one.task for one in result.rows} == set(cases.TASKS)
    assert result.record["chosen"]["SGD 16"]["waves"] == 8
    page = saved.with_suffix(".md").read_text()
    assert all(part.name in page for part in PARTS)
    assert printed.splitlines()[:10] == page.splitlines()[:10] and "| waves |" not in printed
    chosen = [one for one in result.rows if one.part == "chosen"]
    assert {one.elements for one in chosen} == {16, 40}
    assert {one.choice for one in chosen} == {"before", "chosen", "native"}
    assert all(one.to_present == 0.25 for one in chosen if one.choice == "chosen")


def test_without_time_or_memory_a_case_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Search(CPU, [16], command.QUICK, until=0.0)
    late.settle(PARTS[0])
    assert late.rows == [] and set(late.left_out.values()) == {"no time was left"}
    assert late.chosen == late.before
    monkeypatch.setattr(search, "free_memory", lambda device: 2**32)
    full = Search(CPU, [16], command.QUICK, until=math.inf)
    full.confirm()
    assert full.rows == [] and set(full.left_out.values()) == {"memory does not hold it"}


def test_without_the_engine_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(command.triton_engine, "unavailable", lambda device: "no Triton here")
    assert command.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "benchmarks.tuning: nothing measured, no Triton here\n"
    assert list(tmp_path.iterdir()) == []


def test_what_to_write_names_every_rule_and_width() -> None:
    searching = Search(CPU, [16], command.QUICK, until=0.0)
    text = lines_to_write(searching.chosen, CPU)
    assert text.count("Tuning(") == 4
    for rule, file in (("Adam", "adam"), ("SGD", "sgd")):
        rows = text.partition(f"# tunings of {rule}, in fused_sched.optim.{file}\n")[2]
        assert [row.partition(":")[0] for row in rows.splitlines()[:2]] == [
            f"({bits}, (0, 0))" for bits in (32, 16)
        ]
