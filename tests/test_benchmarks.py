"""The benchmarks' shapes, files and tables; one small measurement of each from end to end."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fused_sched
from benchmarks import cases, graph, host, rows, scaling, schedule, step, uses
from benchmarks.all_providers import CAPTURABLE, all_providers, baseline, left_out
from benchmarks.measure import COPY_BYTES, Effort, Runner, Spread, copy_rate
from benchmarks.models import MODELS, QUICK_MODELS, Group, Model
from benchmarks.networks import NETWORKS
from benchmarks.peers import PEERS, Peer
from benchmarks.providers import Provider, make_ours, make_torch
from benchmarks.record import record_here
from benchmarks.report import (
    BLOCKS,
    END,
    QUESTIONS,
    RESULTS,
    START,
    agrees,
    load,
    named_paths,
    page_block,
    question_of,
    readme_block,
    readme_path,
    shown_paths,
    updated,
    write,
)
from benchmarks.result import Result, file_stem
from benchmarks.schedules import METRIC, SCHEDULES
from benchmarks.tables import readme
from benchmarks.tables.host import fit
from benchmarks.tables.markdown import format_difference, format_time
from benchmarks.tables.scaling import Curve
from benchmarks.tables.step import Row
from benchmarks.workload import RULES, Task, Workload

CPU = torch.device("cpu")
ONCE = Effort(rounds=2, batch_seconds=0.0, max_steps=1)

# name: (tensors, groups, parameters)
SIZES = {
    "10x64": (10, 1, 640),
    "1000x1000": (1000, 1, 1_000_000),
    "mlp": (6, 1, 84_060),
    "resnet50": (161, 1, 25_557_032),
    "gpt2": (148, 1, 124_439_808),
    "64M": (1, 1, 67_108_864),
    "28groups": (152, 28, 5_717_416),
    "10000x64": (10_000, 1, 640_000),
    "465groups": (465, 465, 15_329_280),
    "vit-b": (152, 1, 86_567_656),
    "gpt2-xl": (580, 1, 1_557_611_200),
    "llama-3-8b": (291, 1, 8_030_261_248),
}

# microseconds: as tables show them
TIMES = {
    0.5: "0.500 us",
    12.34: "12.3 us",
    999.4: "999 us",
    1234.0: "1.23 ms",
    4.5e7: "45.0 s",
    -2300.0: "-2.30 ms",
    0.0: "0 us",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of small runs of every question, with stock torch and one of our providers."""
    folder = tmp_path_factory.mktemp("results")
    common = ["--quick", "--device", "cpu", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        for question in (cases, step, host, scaling, schedule):
            patch.setattr(question, "QUICK", ONCE)
        patch.setattr(schedule, "GROUPS", (1, 3))
        chosen = ["--providers", "eager fused"]
        assert step.main([*common, *chosen, "--models", "10x64"]) == 0
        assert host.main([*common, *chosen, "--tensors", "10", "30"]) == 0
        assert scaling.main([*common, *chosen, "--sizes", "1000", "10000", "1000000"]) == 0
        assert schedule.main(common) == 0
        assert cases.main([*common, "--engines", "eager", "--uses", "loop", "plateau"]) == 0
    write_graph(folder)
    return folder


def write_graph(folder: Path) -> None:
    """Iterations on the CPU, of which `graph` itself would say that there are none."""
    network, device = NETWORKS["mlp"], torch.device("cpu")
    result = Result(asdict(record_here(device)), {}, {}, [])
    result.rows.extend(graph.measure(network, graph.iterating(device), device, ONCE))
    result.models[network.name] = graph.model_of(network.name, network.build()).describe()
    write(result, folder / file_stem("graph", "a CPU", quick=True))


@pytest.fixture(params=QUESTIONS)
def result_path(request: pytest.FixtureRequest, out: Path) -> Path:
    """The JSON file of each question's run."""
    (path,) = out.glob(f"{request.param}-*.json")
    return path


# -- models and providers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_architectures_sizes(name: str) -> None:
    model = MODELS[name]
    assert (len(model.shapes), len(model.groups), model.num_params) == SIZES[name]


def test_sizes_cover_every_model() -> None:
    assert set(SIZES) == set(MODELS) > set(QUICK_MODELS)


@pytest.mark.parametrize(
    "task, moved",
    [
        (Task("AdamW"), 28 * 10),
        (Task("SGD"), 20 * 10),
        (Task("Adam", "bfloat16"), 14 * 10),
        (Task("AdamW", "mixed"), 28 * 3 + 14 * 7),
        (Task("RMSprop"), 28 * 10),
        (Task("Adagrad"), 20 * 10),
    ],
)
def test_bytes_of_a_step_are_counted(task: Task, moved: int) -> None:
    model = Model("two", (Group(((3,), (7,))),))
    assert task.bytes_moved(model) == moved
    workload = Workload.make(model, CPU, task)
    used = [param.dtype.itemsize * param.numel() for param in workload.params[0]]
    assert task.param_bytes(model) == sum(used)
    opt = task.make(fused_sched.optim, workload.param_groups())
    opt.step()
    assert fused_sched.explain(opt).bytes_per_step == moved


@pytest.mark.parametrize("name", RULES)
def test_every_rule_moves_the_bytes_that_are_counted(name: str) -> None:
    task, model = Task(name), Model("two", (Group(((3,), (7,))),))
    opt = task.make(fused_sched.optim, Workload.make(model, CPU, task).param_groups())
    opt.step()
    assert fused_sched.explain(opt).bytes_per_step == task.bytes_moved(model)


@pytest.mark.parametrize("name", RULES)
def test_every_provider_of_torch_or_peer_is_measured_or_left_out_with_a_reason(name: str) -> None:
    task = Task(name)
    measured, absent = set(all_providers(CPU, task)), left_out(CPU, task, quick=True)
    assert {"torch default", "torch foreach", "torch compiled"} <= measured
    assert ("torch fused" in measured) != ("torch fused" in absent)
    assert {"triton", "torch capturable", "torch compiled"} <= set(absent)
    assert {peer.name for peer in PEERS} <= measured | set(absent)
    assert all(absent.values())


@pytest.mark.parametrize("name", RULES)
def test_every_provider_steps_every_rule(name: str) -> None:
    workload = Workload.make(MODELS["10x64"], CPU, Task(name))
    for provider in all_providers(CPU, workload.task).values():
        if provider.name == "torch compiled":  # minutes, for all rules
            continue
        before = workload.params[0][0].clone()
        runner = provider.build(workload)
        with runner.context():
            runner.step()
        assert not torch.equal(workload.params[0][0], before), provider.name


def test_what_torch_has_no_fused_step_of_is_compared_with_foreach(tmp_path: Path) -> None:
    options = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--optimizer", "RMSprop"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "QUICK", ONCE)
        assert step.main([*options, "--providers", "eager fused", "--models", "10x64"]) == 0
    (path,) = tmp_path.glob("step-*.json")
    result = load(path)
    names = [row.provider for row in result.rows]
    assert names == ["torch default", "torch foreach", "eager fused"]
    assert baseline(Task("RMSprop")) == "torch foreach" and result.rows[1].to_fused == 1
    assert "to torch foreach" in path.with_suffix(".md").read_text()
    text = question_of(path).summary(result)
    assert "Ratios are to torch foreach" in text and "torch fused" not in text


def test_installed_peer_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Peer("twin", "torch.optim", {"AdamW": ("AdamW", {})}, devices=("cpu",))
    monkeypatch.setattr("benchmarks.all_providers.PEERS", (here,))
    assert "twin" in all_providers(CPU, Task("AdamW")) and "twin" not in left_out(
        CPU, Task("AdamW")
    )
    assert left_out(CPU, Task("SGD"))["twin"] == "it has no SGD"
    workload = Workload.make(MODELS["10x64"], CPU, Task("AdamW"))
    before = workload.params[0][0].clone()
    all_providers(CPU, Task("AdamW"))["twin"].build(workload).step()
    assert not torch.equal(workload.params[0][0], before)


def test_another_engine_than_the_one_asked_for_is_refused() -> None:
    workload = Workload.make(MODELS["10x64"], torch.device("meta"), Task("AdamW"))
    with pytest.raises(RuntimeError, match="native"):
        make_ours(workload, "native", fuse=True)


def test_batches_share_the_baseline() -> None:
    providers = [Provider(name, make_ours) for name in ("a", "torch fused", "b", "c")]
    batches = partial(step.batches, providers, base="torch fused")
    names = [[one.name for one in batch] for batch in batches(at_once=3)]
    assert names == [["torch fused", "a", "b"], ["torch fused", "c"]]
    assert batches(at_once=4) == batches(at_once=None) == [providers]


def test_model_beyond_memory_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step, "free_memory", lambda device: 640 * 4 * 12)
    arguments = (Task("AdamW"), list(all_providers(CPU, Task("AdamW")).values()), CPU, ONCE)
    result = step.measure_all([MODELS["10x64"]], *arguments, tmp_path / "step-x", True)
    assert result.rows == [] and "exceed memory" in result.left_out["10x64"]


def test_torch_lr_of_floats_is_the_lr_of_a_float_schedule() -> None:
    """What is filled into the tensors equals what torch's scheduler gives a float lr."""
    workload = Workload.make(MODELS["28groups"], CPU, Task("AdamW"))

    def halving(module: ModuleType, opt: torch.optim.Optimizer) -> object:
        return module.StepLR(opt, 1, gamma=0.5)

    pairs = [
        make_torch(workload, halving, foreach=False, tensor_lr=True, float_schedule=True),
        make_torch(workload, halving, foreach=False),
    ]
    for pair in pairs:
        for _ in range(3):
            pair.runner().step()
    filled, expected = ([group["lr"] for group in pair.alive.param_groups] for pair in pairs)
    assert all(isinstance(lr, torch.Tensor) for lr in filled)
    assert [float(lr) for lr in filled] == pytest.approx(expected, rel=1e-6)
    assert expected == [one["lr"] / 8 for one in workload.param_groups()]


def test_graphs_of_torch_have_a_schedule_of_floats_as_well() -> None:
    assert "torch fused capturable, float lr, graph" in {one.name for one in CAPTURABLE}


def test_copy_exceeds_the_caches() -> None:
    assert COPY_BYTES["cuda"] >= 2**31  # an H200's have 60 MB
    assert copy_rate(2.0, CPU) == COPY_BYTES["cpu"] / 1e9


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_same_in_torch_and_here(name: str) -> None:
    values = []
    for optim, module in (
        (torch.optim, torch.optim.lr_scheduler),
        (fused_sched.optim, fused_sched.lr_scheduler),
    ):
        opt = Task("AdamW").make(optim, schedule.workload_of(2, CPU).param_groups())
        with schedule.quiet_construction():
            sched = SCHEDULES[name](module, opt)
        for _ in range(3):
            opt.step()
            sched.step(*METRIC.get(name, ()))
        values.append([group["lr"] for group in opt.param_groups])
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@pytest.mark.parametrize(
    "name, provider",
    [
        pytest.param(name, provider, id=f"{name}, {provider.name}")
        for name, use in uses.USES.items()
        for provider in (uses.ours("eager", False), uses.ours("eager", True))
        if use.serves(provider)
    ],
)
def test_uses_are_the_same_in_torch_and_here(name: str, provider: uses.Provider) -> None:
    use = replace(uses.USES[name], model=Model("two", (Group(((3, 2), (5,))), Group(((4,),)))))
    trained = []
    for one in (uses.FUSED, provider):
        workload = Workload.make(use.model, CPU, Task("AdamW"))
        torch.manual_seed(1)  # of gradients that the use makes
        with cases.engine_context(one)():
            runner = use.begin(one, workload.param_groups())
            for _ in range(4):
                runner.step()
        trained.append(uses.all_params(workload.param_groups()))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-5, atol=1e-8)


def test_every_first_turn_is_of_a_new_loop() -> None:
    use, begun = uses.USES["161 first steps"], []

    def begin(provider: uses.Provider, groups: uses.Groups) -> Runner:
        begun.append(groups)
        return Runner(lambda: None)

    cases.measure(replace(use, begin=begin), [uses.FUSED], CPU, ONCE)
    assert len(begun) == ONCE.rounds + 1  # and one to choose how many turns fill a batch


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train(name: str) -> None:
    network = NETWORKS[name]
    providers = {one.name: one for one in graph.iterating(CPU)}
    training = graph.Training.make(network, providers["eager fused"], CPU)
    before = [param.detach().clone() for param in training.module.parameters()]
    training.runner(CPU, replay=False).step()
    after = list(training.module.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says so only where there is no GPU")
def test_graph_without_a_gpu_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert graph.main(["--quick", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -- figures derived from the rows ---------------------------------------------------------------


@pytest.mark.parametrize("us", TIMES)
def test_times_are_shown_with_three_digits(us: float) -> None:
    assert format_time(us) == TIMES[us]


def test_differences_have_no_digits_of_noise() -> None:
    assert [format_difference(us) for us in (-0.5, 0.0, 0.09)] == ["< 0.1 us"] * 3
    assert format_difference(0.1) == "0.100 us"


def test_spread_is_median_and_outer_fifths() -> None:
    assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == Spread(3.5, 2.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_fit_finds_fixed_and_per_tensor_time() -> None:
    found = fit([(n, 5 + 0.25 * n) for n in (10, 100, 10_000)])
    assert (found.fixed, found.per_tensor) == (pytest.approx(5), pytest.approx(0.25))
    assert found.worst < 1e-9
    assert fit([(10, 10.0), (100, 20.0), (1000, 400.0)]).worst > 0.1


def test_fit_has_no_time_below_zero() -> None:
    points = [(10, 1.0), (100, 22.0), (1000, 240.0)]
    found = fit(points)
    assert found.fixed == 0

    def error(per_tensor: float) -> float:
        return sum((per_tensor * n / us - 1) ** 2 for n, us in points)

    best = found.per_tensor
    assert error(best) < min(error(0.99 * best), error(1.01 * best))


def scaling_row(elements: int, us: float) -> Row:
    """A row in which only the time matters."""
    ratios = {"to_default": 1, "to_fused": 1}
    spans = {f"{name}_{end}": 1 for name in (*ratios, "us") for end in ("low", "high")}
    rest = {"bytes": 28 * elements, "to_limit": None, "copy_gb_per_s": 40.0, "launches": None}
    return Row(str(elements), "x", us, gb_per_s=1.0, **ratios, **spans, **rest)


@pytest.mark.parametrize(
    "times, doubled",
    [((3, 6, 60), 1e4), ((2, 2, 8), 10**4.5), ((1, 4, 9), 10**3.5), ((3, 4, 5), None)],
)
def test_doubled_is_where_a_step_takes_twice_the_first_time(
    times: tuple[float, ...], doubled: float | None
) -> None:
    sizes = (1_000, 10_000, 100_000)
    rows = [scaling_row(size, us) for size, us in zip(sizes, times, strict=True)]
    found = Curve("x", rows).doubled()
    assert found == (doubled if doubled is None else pytest.approx(doubled))


# -- measurements and their files ----------------------------------------------------------------


def test_measurement_compares_with_torch(out: Path) -> None:
    (path,) = out.glob("step-*.json")
    result = load(path)
    assert [row.provider for row in result.rows] == ["torch default", "torch fused", "eager fused"]
    assert all(0 < row.us_low <= row.us <= row.us_high for row in result.rows)
    default, fused, _ = result.rows
    assert (default.to_default, fused.to_fused) == (1, 1)
    assert [row.bytes for row in result.rows] == [640 * 28] * 3
    assert all(row.copy_gb_per_s > 0 and row.launches is None for row in result.rows)


def test_cases_compare_with_torch_fused_and_name_what_is_slower(out: Path) -> None:
    (path,) = out.glob("cases-*.json")
    result = load(path)
    stock, both = ["torch default", "torch fused"], ["eager explicit", "eager fused"]
    assert [row.provider for row in result.rows] == [*stock, *both, *stock, both[0]]
    assert all(row.to_fused == 1 for row in result.rows if row.provider == "torch fused")
    slow = replace(result.rows[2], to_fused=1.26), replace(result.rows[3], to_fused=1.004)
    text = question_of(path).summary(replace(result, rows=[*result.rows[:2], *slow]))
    assert text.endswith("Slower than torch fused: eager explicit, loop (1.26).\n")


def test_measurement_writes_every_file(result_path: Path) -> None:
    result = load(result_path)
    assert result_path.with_suffix(".md").read_text() == question_of(result_path).full(result)
    assert result_path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert result.record["device"] and result.record["torch"] and result.record["commit"]


def test_saved_result_loads_as_it_was(result_path: Path, tmp_path: Path) -> None:
    result = load(result_path)
    result.save(tmp_path / result_path.stem)
    assert load(tmp_path / result_path.name) == result
    assert (tmp_path / result_path.name).read_text() == result_path.read_text()


def test_schedule_costs_are_alone_and_inside(out: Path) -> None:
    (path,) = out.glob("schedule-*.json")
    rows = load(path).rows
    alone = {(row.schedule, row.groups) for row in rows if row.part == "alone"}
    inside = {(row.schedule, row.groups) for row in rows if row.part == "inside"}
    assert {name for name, _ in inside} < {name for name, _ in alone} <= set(SCHEDULES)
    assert {groups for _, groups in inside} == {groups for _, groups in alone} == {1, 3}
    assert all(row.ratio == 1 for row in rows if (row.part, row.provider) == ("alone", "torch"))


def test_cold_step_is_that_of_a_process_with_empty_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess:
        asked.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, stdout="1.5\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert host.cold_step("native fused", CPU) == 1.5
    assert asked["command"][:3] == [sys.executable, "-m", "benchmarks.host"]
    folders = {asked["env"][name] for name in host.CACHES}
    assert len(folders) == 1 and not Path(folders.pop()).exists()


def test_first_step_of_a_process_is_printed(capsys: pytest.CaptureFixture) -> None:
    assert host.main(["--device", "cpu", "--first", "torch fused"]) == 0
    assert float(capsys.readouterr().out) > 0


# -- the pages -----------------------------------------------------------------------------------


def test_stale_pages_are_noticed(out: Path, tmp_path: Path) -> None:
    page, paths = tmp_path / "page.md", shown_paths(out)
    assert {question_of(path) for path in paths} == set(QUESTIONS.values())
    for block, shown in ((page_block, paths), (readme_block, [readme_path(paths)])):
        page.write_text(updated(f"before\n{START}old{END}\nafter\n", block(paths)))
        text = page.read_text()
        assert agrees(page, block, out) and named_paths(text, out) == shown
        assert text.startswith("before\n") and text.endswith("\nafter\n")
        for path in shown:  # one digit of any of them
            page.write_text(with_another_digit(text, after=path.name))
            assert not agrees(page, block, out), path.name


def with_another_digit(text: str, after: str) -> str:
    """The text with the first digit of the first table behind a word replaced."""
    start = text.index(after) + len(after)
    cell = next(at for at in range(text.index("| ---", start), len(text)) if text[at].isdigit())
    return text[:cell] + str((int(text[cell]) + 1) % 10) + text[cell + 1 :]


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        updated("no markers", "block")


def test_whole_runs_are_shown_rather_than_quick_ones(tmp_path: Path) -> None:
    for name in (
        "host-a-quick",
        "host-a",
        "host-b-quick",
        "step-a-sgd-mixed",
        "step-a-sgd-float32",
    ):
        (tmp_path / f"{name}.json").touch()
    shown = [path.stem for path in shown_paths(tmp_path)]
    assert shown == ["step-a-sgd-float32", "host-a", "host-b-quick"]


@pytest.mark.parametrize("page", BLOCKS, ids=lambda page: page.name)
def test_pages_state_the_results(page: Path) -> None:
    named = named_paths(page.read_text(), RESULTS)
    assert named and all(path.exists() for path in named)
    assert agrees(page, BLOCKS[page]), "stale: run python -m benchmarks.report"


def test_readme_shows_four_ways_on_four_models() -> None:
    path = readme_path(shown_paths(RESULTS))
    shown = readme.excerpt(load(path))
    names = ["torch default", "torch fused", "fused_sched explicit", "fused_sched fused"]
    assert [row.provider for row in shown.rows] == [name for name in names for _ in readme.MODELS]
    assert [row.model for row in shown.rows] == [*readme.MODELS] * 4
    originals = {row.us for row in load(path).rows}
    assert {row.us for row in shown.rows} < originals


def test_readme_prefers_a_gpus_result_and_its_graph(out: Path, tmp_path: Path) -> None:
    (path,) = out.glob("step-*.json")
    result = load(path)
    row = result.rows[-1]
    ours = [replace(row, provider=f"triton {way}") for way in ("explicit", "fused", "fused, graph")]
    on_gpu = replace(result, rows=[*result.rows[:2], *ours], models={"mlp": "6 tensors, 1, 9"})
    on_gpu.rows[:] = [replace(row, model="mlp") for row in on_gpu.rows]
    on_gpu.save(tmp_path / "step-a-gpu-adamw-float32")
    gpu = tmp_path / "step-a-gpu-adamw-float32.json"
    assert readme_path([gpu, path]) == readme_path([path, gpu]) == gpu
    shown = [row.provider for row in readme.excerpt(load(gpu)).rows]
    assert shown[2:] == ["fused_sched explicit", "fused_sched fused, graph"]


def test_no_readme_without_its_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="adamw-float32"):
        readme_path([tmp_path / "host-a.json"])


NEGATIVE_TIME = re.compile(r"-[\d.]+ (?:us|ms|s)\b")
A_RATE = re.compile(r"[\d.]+ GB/s")


def test_pages_show_no_figure_that_cannot_be() -> None:
    """No time below zero; a rate only where a step moves more than caches hold."""
    assert NEGATIVE_TIME.search("| -0.03 us |") and A_RATE.search("12 GB/s")
    for path in (*BLOCKS, *RESULTS.glob("*.md")):
        assert not NEGATIVE_TIME.search(path.read_text()), path.name
    for path in [*RESULTS.glob("step-*.json"), *RESULTS.glob("scaling-*.json")]:
        result = load(path)
        for row in result.rows:
            cell = question_of(path).cell(row)
            assert bool(A_RATE.search(cell)) == (row.bytes > 2**28), (path.name, cell)


def test_committed_tables_are_those_of_their_rows() -> None:
    paths = [path for name in QUESTIONS for path in RESULTS.glob(f"{name}-*.json")]
    stale = [
        path.name
        for path in paths
        if path.with_suffix(".md").read_text() != question_of(path).full(load(path))
    ]
    assert paths and stale == [], "run python -m benchmarks.report"


# -- rows of a schedule --------------------------------------------------------------------------


@pytest.mark.parametrize("name", rows.SCHEDULES)
def test_each_schedule_whose_rows_are_timed_is_fused(name):
    make = rows.SCHEDULES[name]
    step = rows.stepper(make, torch.device("cpu"))
    groups = step.__self__.param_groups
    before = groups[0]["lr"]
    step()
    assert (groups[0]["lr"] != before) == (make is not None)
