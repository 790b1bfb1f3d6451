"""``python -m fused_sched bench``: what it times, and the shapes it reads from checkpoints."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_sched
from fused_sched import cli
from fused_sched.cli import bench, shapes, timing
from tests.gpu import capture as stand_in
from tests.interpreter import quick

CPU = torch.device("cpu")
MODEL = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5))
SPECS = [((5, 7), torch.float32), *[((5,), torch.float32)] * 5]
"""The floating-point tensors of its state dict; num_batches_tracked is an int64 beside them."""


def safetensors(path: Path, tensors: dict[str, Any], length: int | None = None) -> Path:
    """A file of that header, with no data behind it."""
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    return path


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, 0]}


def with_header(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": tensor("BF16", 64, 32),
    "b": tensor("F32", 3),
    "scalar": tensor("F16"),
    "none": tensor("F32", 0, 3),
    "count": tensor("I64", 1),
    "small": tensor("F8_E4M3", 4),
}
READ = [((64, 32), torch.bfloat16), ((3,), torch.float32), ((), torch.float16)]


# -- shapes --------------------------------------------------------------------------------------


def test_safetensors_header_alone_is_read(tmp_path):
    found = shapes.of_checkpoint(safetensors(tmp_path / "m.safetensors", TENSORS))
    assert found.specs == READ
    assert (found.count, found.left_out) == (64 * 32 + 3 + 1, 3)


def test_index_names_the_shards(tmp_path):
    safetensors(tmp_path / "1.safetensors", {"a": TENSORS["a"]})
    safetensors(tmp_path / "2.safetensors", {"b": TENSORS["b"], "c": TENSORS["scalar"]})
    index = tmp_path / "m.safetensors.index.json"
    names = {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    assert shapes.of_checkpoint(index).specs == READ


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict", "module"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_of_torch_save(key, zipped, tmp_path):
    state = MODEL.state_dict()
    state = state if key is None else {"epoch": 3, key: state, "optimizer": torch.ones(999)}
    torch.save(state, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    found = shapes.of_checkpoint(tmp_path / "m.pt")
    assert (found.specs, found.left_out) == (SPECS, 1)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.safetensors", b"", "not a safetensors file: a header of 0 bytes"),
        ("m.safetensors", b"hello", "not a safetensors file: a header of"),
        ("m.safetensors", b"\x02" + b"\0" * 7 + b"[]", "not a safetensors file: its header lacks"),
        ("m.safetensors", b"\x02" + b"\0" * 7 + b"{]", "not a safetensors file: "),
        ("m.safetensors", b"\x08" + b"\0" * 7 + b'{"a": 1}', "not a safetensors file: its header"),
        ("m.safetensors", b"\x02" + b"\0" * 7 + b"{}", "holds no floating-point tensor"),
        ("m.safetensors", with_header({"a": tensor("F32", -3)}), "-3 is not the size of a tensor"),
        ("m.safetensors.index.json", b"[]", "not an index of safetensors files"),
        ("m.pt", b"hello", "m.pt is not a checkpoint of torch.save"),
        ("m.pt", b"", "m.pt is not a checkpoint of torch.save"),
    ],
)
def test_what_is_no_checkpoint_is_refused(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        shapes.of_checkpoint(tmp_path / name)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save(MODEL, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"save model.state_dict\(\)"):
        shapes.of_checkpoint(tmp_path / "m.pt")


def test_the_default_is_what_its_docstring_says():
    model = shapes.transformer()
    assert (round(model.count / 1e6, 1), len(model.specs)) == (13.8, 75)
    assert "13.8 million params in 75 tensors" in shapes.transformer.__doc__


# -- what is timed -------------------------------------------------------------------------------

SMALL = shapes.Shapes("small", [((3, 5), torch.float32), ((), torch.bfloat16)])


@pytest.mark.parametrize("name", sorted(bench.OURS))
def test_every_way_steps_the_params_and_counts_its_states(name):
    params = bench.make_params(SMALL, CPU)
    assert [(tuple(p.shape), p.dtype) for p in params] == SMALL.specs
    ways = bench.steps_of(name, params)
    quickest = [baseline for baseline in bench.BASELINES if baseline in ways]
    assert list(ways) == [
        "torch default",
        *quickest[:1],
        "fused_sched",
        "fused_sched, fused schedule",
    ]
    for step in ways.values():
        params[0].grad.fill_(1e6)
        params[0].detach().zero_()  # so that the smallest step shows
        step()
        assert params[0].all()
    opt, _ = bench._fused_pair(name, params)
    opt.step()
    tensors = [t for t in opt.state[params[0]].values() if t.shape == params[0].shape]
    assert len(tensors) == bench.state_tensors(name)


def test_a_captured_step_is_replayed(monkeypatch):
    monkeypatch.setattr(bench, "new_graph", lambda: stand_in.new_graph(CPU))
    monkeypatch.setattr(bench, "capture", lambda graph, device: stand_in.capture(graph))
    params = bench.make_params(SMALL, CPU)
    with fused_sched.use_engine("triton"), quick():
        step = bench._captured("AdamW", params)
        before = params[0].detach().clone()
        params[0].grad.fill_(1e6)
        step()
    assert not torch.equal(params[0], before)


def test_ratio_is_that_of_the_same_rounds():
    rows = [bench.Row("a", [1.0, 10.0, 4.0]), bench.Row("torch fused", [2.0, 5.0, 2.0])]
    assert rows[0].ratio(rows[1]) == 2.0
    assert "2.00" in bench.as_text(rows).splitlines()[1]


class Clock:
    """Stands for the module ``time``: it moves only while a step is made."""

    def __init__(self):
        self.now = 100.0
        self.calls = 0
        self.late_factor = 1.0

    def perf_counter(self) -> float:
        return self.now

    def step_of(self, seconds: float) -> Callable[[], None]:
        """A step that takes so long, and from the hundredth call of any on `late_factor` longer."""

        def step() -> None:
            self.calls += 1
            self.now += seconds * (self.late_factor if self.calls > 100 else 1.0)

        return step


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    return found


def test_measure_takes_every_row_once_a_round_until_the_time_is_up(clock):
    steps = {"a": clock.step_of(0.001), "b": clock.step_of(0.004)}
    rows = timing.measure(steps, CPU, until=clock.now + 2.0)
    assert [row.name for row in rows] == ["a", "b"]
    assert len(rows[0].seconds) == len(rows[1].seconds) > 10
    assert rows[0].seconds == pytest.approx([0.001] * len(rows[0].seconds))
    assert rows[1].ratio(rows[0]) == pytest.approx(4)
    assert 101.8 < clock.now <= 102.0


@pytest.mark.parametrize("late_factor", [1, 30, 1000])
def test_measure_keeps_to_its_time_when_the_machine_gets_busy(clock, late_factor):
    clock.late_factor = late_factor
    seconds = {"a": 0.0001, "b": 0.0004}
    steps = {name: clock.step_of(each) for name, each in seconds.items()}
    timing.measure(steps, CPU, until=clock.now + 3.0)
    slowed = sum(seconds.values()) * late_factor
    # Over time only by the round in which it got slow: a batch had at most doubled its calls.
    assert clock.now < 103.0 + 4 * timing.BATCH_SECONDS + 300 * slowed


def test_measure_makes_one_round_of_what_takes_longer_than_its_time(clock):
    rows = timing.measure({"a": clock.step_of(50.0)}, CPU, until=clock.now + 1.0)
    assert rows[0].seconds == [50.0]
    assert clock.calls == 3  # the first, one that fills the caches, one that is timed
    assert " 50 s " in bench.as_text([bench.Row("torch fused", rows[0].seconds)])


def test_bench_prints_a_table(tmp_path, capsys):
    path = safetensors(tmp_path / "m.safetensors", TENSORS)
    argv = ["bench", "--like", str(path), "--seconds", "0", "--device", "cpu", "--optimizer", "SGD"]
    assert cli.main([*argv, "--dtype", "float32"]) == 0
    text = capsys.readouterr().out
    assert "SGD and CosineAnnealingLR on m.safetensors: 2,052 params in 3 tensors" in text
    assert "float32\ncpu (" in text
    assert "\ntorch fused " in text and "\nfused_sched, fused schedule " in text
    assert "1 round, every row once in each; fewer than 5: give it more --seconds" in text


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--device", "cuda:99"], "cuda:99 is not available; expected one of cpu"),
        (["--device", "foo"], "foo"),
        (["--like", "no-such-file.pt"], "No such file"),
    ],
)
def test_what_cannot_be_measured_exits_with_2(argv, told, capsys):
    assert cli.main(["bench", *argv]) == 2
    assert told in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(bench, "free_bytes", lambda device: 10**9)
    big = shapes.Shapes("big", [((250_000_000,), torch.float32)])
    monkeypatch.setattr(bench, "transformer", lambda: big)
    assert cli.main(["bench", "--device", "cpu"]) == 2
    assert (
        "big: 250,000,000 params and 4 optimizers' states need 10.0 GB" in capsys.readouterr().err
    )


def test_a_busy_machine_is_said_to_be_one():
    assert bench._doubts(bench.ROUNDS, 0.1) == ""
    assert "load average 3.0" in bench._doubts(bench.ROUNDS, 3.0)


def test_state_dicts_of_modules_are_ordered(tmp_path):
    torch.save(OrderedDict(a=torch.ones(2)), tmp_path / "m.pt")
    assert shapes.of_checkpoint(tmp_path / "m.pt").specs == [((2,), torch.float32)]
