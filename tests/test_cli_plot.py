"""``python -m fused_sched plot``: schedules read from text, never evaluated, and drawn."""

from __future__ import annotations

import re
import sys
from itertools import pairwise

import pytest
import torch

import fused_sched
from fused_sched import cli
from fused_sched.cli import plot, text_plot
from fused_sched.cli.expression import NAMES, ExpressionError, build, groups_in, read

EXAMPLES = {
    "StepLR": "StepLR(30, gamma=0.5)",
    "MultiStepLR": "MultiStepLR(milestones=[10, 20])",
    "ConstantLR": "ConstantLR(factor=0.5, total_iters=4)",
    "LinearLR": "LinearLR(0.1, total_iters=40)",
    "ExponentialLR": "ExponentialLR(gamma=0.9)",
    "PolynomialLR": "PolynomialLR(total_iters=30, power=2.0)",
    "CosineAnnealingLR": "CosineAnnealingLR(T_max=100, eta_min=-0.001)",
    "CosineAnnealingWarmRestarts": "CosineAnnealingWarmRestarts(T_0=5, T_mult=2)",
    "CyclicLR": "CyclicLR(0.001, 0.1, step_size_up=20, mode='triangular2')",
    "OneCycleLR": "OneCycleLR(max_lr=0.1, total_steps=50, three_phase=True)",
    "SWALR": "SWALR(swa_lr=0.01, anneal_epochs=20)",
    "SequentialLR": "SequentialLR([LinearLR(0.1), ExponentialLR(0.9)], milestones=[5])",
    "ChainedScheduler": "ChainedScheduler([ConstantLR(0.5), ExponentialLR(0.99)])",
}
"""Of every scheduler that can be written as text, a call; the keys are checked below."""

LENGTHS = {
    "OneCycleLR(max_lr=0.1, total_steps=50)": 50,
    "CosineAnnealingLR(T_max=100)": 101,
    "StepLR(step_size=30)": 121,
    "ExponentialLR(gamma=0.9)": 100,
    "SequentialLR([LinearLR(0.1), OneCycleLR(0.1, total_steps=40)], milestones=[5])": 45,
}

REFUSED = {
    "StepLR(step_size=n)": "StepLR, step_size: `n` is not a literal",
    "StepLR(30 * 2)": r"StepLR: `30 \* 2` is not a literal",
    "StepLR(step_size=print(1))": "Unknown scheduler 'print'",
    "__import__('os').system('true')": "Unknown scheduler 'system'",
    "(lambda: 1)()": "Unknown scheduler '.*lambda ?: 1",  # 3.10 writes the blank
    "StepLR(**{'step_size': 3})": "write the arguments out",
    "StepLR(*[3])": "not a literal",
    "CosineLR(3)": "did you mean CosineAnnealingLR?",
    "1 + 1": "`1 \\+ 1` is not a scheduler",
    "StepLR(": "not a Python expression",
    "import os": "not a Python expression",
    "StepLR(3)\0": "cannot be read|not a Python expression",
    "LambdaLR(lambda epoch: 0.9)": r"takes a function.*in Python: scheduler.plot\(n\)",
    "ReduceLROnPlateau()": "follows a metric; in Python",
    "OneCycleLR(max_lr=0.1)": "OneCycleLR: You must define either total_steps OR",
    "StepLR()": "StepLR: .*missing.*step_size",
    "SequentialLR([StepLR(3)], milestones=[1])": "SequentialLR: Sequential Schedulers expects",
    "SequentialLR([3], milestones=[])": "SequentialLR: ",
}


def expected_of(text: str) -> torch.Tensor:
    """lr of the same schedule, of Python's own evaluation of the text, with the optimizer in it."""
    opt = fused_sched.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    names = {n: _with(getattr(fused_sched.lr_scheduler, n), opt) for n in NAMES}
    scheduler = eval(text, names)
    return scheduler.values(plot.length(scheduler))["lr"]


def _with(cls, opt):
    if cls is fused_sched.lr_scheduler.ChainedScheduler:
        return cls
    return lambda *args, **kwargs: cls(opt, *args, **kwargs)


def curves(*argv: str) -> dict:
    return plot.curves(cli.parser().parse_args(["plot", *argv]))


# -- reading -------------------------------------------------------------------------------------


def test_an_example_of_every_scheduler():
    assert sorted(EXAMPLES) == NAMES
    every = set(fused_sched.lr_scheduler.__all__) - {"LRScheduler"}
    assert every - set(NAMES) == {"LambdaLR", "MultiplicativeLR", "ReduceLROnPlateau"}


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_text_gives_the_schedule_that_code_gives(name):
    text = EXAMPLES[name]
    (values,) = curves(text).values()
    assert torch.equal(values["lr"], expected_of(text))
    assert str(read(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "torch.optim.lr_scheduler.StepLR(optimizer, 30)",
        "lr_scheduler.StepLR(self.opt, step_size=30)",
        "StepLR(optimizer=opt, step_size=30)",
    ],
)
def test_code_may_be_pasted_with_its_module_and_optimizer(text):
    assert read(text).name == "StepLR"
    (values,) = curves(text).values()
    assert torch.equal(values["lr"], expected_of("StepLR(30)"))


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_schedule_is_refused(text):
    opt = fused_sched.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ExpressionError, match=REFUSED[text]):
        build(read(text), opt)


def test_nothing_is_evaluated(capsys):
    assert cli.main(["plot", "StepLR(step_size=print('evaluated'))"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("python -m fused_sched: Unknown scheduler 'print'")


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("StepLR(3)", 1),
        ("OneCycleLR([0.1, 0.2, 0.3], 100)", 3),
        ("CyclicLR(0.1, max_lr=[0.2, 0.3], base_momentum=[0.8, 0.7])", 2),
        ("ChainedScheduler([StepLR(3), SWALR(swa_lr=[0.1, 0.2])])", 2),
        ("MultiStepLR([1, 2, 3])", 1),
    ],
)
def test_lists_of_values_make_param_groups(text, groups):
    assert groups_in(read(text)) == groups


# -- what is drawn -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("text", LENGTHS)
def test_a_schedule_is_drawn_to_its_end(text):
    (values,) = curves(text).values()
    assert len(values["lr"]) == LENGTHS[text]


def test_options_set_lr_steps_and_momentum():
    found = curves(
        "StepLR(1, gamma=0.5)",
        "StepLR(1, gamma=0.5, hyper='momentum')",
        *("--lr", "0.4,0.2", "--steps", "2", "--momentum", "0.8"),
    )
    first, second = found.values()
    assert first["lr"].tolist() == [[0.4, 0.2], [0.2, 0.1]]
    assert second["momentum"].tolist() == [[0.8, 0.8], [0.4, 0.4]]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["OneCycleLR([0.1, 0.2], 100)", "--lr", "1,2,3"], "max_lr must have the same length"),
        (["OneCycleLR([0.1, 0.2, 0.3], 9)", "--lr", "1,2"], "--lr has 2 values for 3 param groups"),
        (["OneCycleLR(0.1, 100)", "--steps", "500"], "gives 101 more values, not 500"),
        (["CosineAnnealingLR(T_max=1000000000)"], "too many to draw"),
        (["StepLR(3)", "--steps", "0"], "Expected positive integer n"),
        (["StepLR(step_size='a')"], "StepLR gives 1 more values"),
        (["StepLR(step_size=3, step_size=4)"], "StepLR: step_size is given twice"),
        (["StepLR(optimizer=3, step_size=3)"], "multiple values for argument 'optimizer'"),
        (["ExponentialLR('a')"], "ExponentialLR: "),
        (["StepLR(3)", "-o", ""], "-o takes the name of a file"),
        (["StepLR(3)", "-o", "no/such/folder/lr.png"], "No such file"),
        (["StepLR(3)", "-o", "lr.abc"], "Format 'abc' is not supported"),
    ],
)
def test_what_cannot_be_drawn_exits_with_2(argv, told, capsys):
    if "-o" in argv:
        pytest.importorskip("matplotlib", reason="plots are optional")
    assert cli.main(["plot", *argv]) == 2
    assert told in capsys.readouterr().err


def test_text_shows_every_schedule_and_hyper(capsys):
    assert cli.main(["plot", "OneCycleLR([0.1, 0.2], 100)", "ExponentialLR(0.9)"]) == 0
    text = capsys.readouterr().out
    lr, momentum = text.split("\n\n")
    assert lr.startswith("lr\n") and momentum.startswith("momentum\n")
    assert "* OneCycleLR([0.1, 0.2], 100), group 0: 0.004 at step 0" in lr
    assert "o OneCycleLR([0.1, 0.2], 100), group 1: 0.008 at step 0" in lr
    assert "+ ExponentialLR(0.9): 0.1 at step 0" in lr
    assert "ExponentialLR" not in momentum
    assert max(map(len, lr.splitlines()[:-3])) <= 80


def test_picture_is_written_with_every_curve(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots are optional")
    path = tmp_path / "lr.svg"
    assert cli.main(["plot", "OneCycleLR([0.1, 0.2], 100)", "StepLR(30)", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"wrote {path}\n"
    text = path.read_text(encoding="utf-8")
    assert text.count('id="axes_') == 2
    assert text.count('id="line2d_') > 5


LINE = re.compile(r'<g id="line2d_\d+">\s*<path d="([^"]*)" clip-path', re.DOTALL)


def test_picture_of_a_schedule_has_no_slanted_line(tmp_path):
    """lr is constant within a step: a curve goes right or up or down, never both."""
    pytest.importorskip("matplotlib", reason="plots are optional")
    path = tmp_path / "lr.svg"
    assert cli.main(["plot", "StepLR(3)", "LinearLR(0.1)", "-o", str(path)]) == 0
    drawn = [
        [tuple(map(float, point.split())) for point in re.split(r"[ML]", line) if point.strip()]
        for line in LINE.findall(path.read_text(encoding="utf-8"))
    ]
    curves = [points for points in drawn if len(points) > 2]  # the others are the grid's
    assert len(curves) == 2
    for points in curves:
        for (x0, y0), (x1, y1) in pairwise(points):
            assert x0 == x1 or y0 == y1


def test_picture_without_a_suffix_is_a_png(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots are optional")
    assert cli.main(["plot", "StepLR(3)", "-o", str(tmp_path / "lr")]) == 0
    assert (tmp_path / "lr.png").exists() and "lr.png" in capsys.readouterr().out


def test_picture_without_matplotlib_says_what_to_install(monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["plot", "StepLR(30)", "-o", "lr.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err


# -- the characters ------------------------------------------------------------------------------


def rows(line: list[float]) -> list[str]:
    """The canvas of one curve."""
    lines = text_plot.render("lr", {"a": line}).splitlines()[1 : 1 + text_plot.HEIGHT]
    return [line.partition("|")[2] for line in lines]


def test_a_ramp_goes_from_corner_to_corner():
    drawn = rows([step / 999 for step in range(1000)])
    assert drawn[-1].startswith("*") and drawn[0].endswith("*")
    assert len(drawn[0]) == text_plot.WIDTH
    firsts = [row.index("*") for row in drawn]
    assert firsts == sorted(firsts, reverse=True)


def test_steps_are_drawn_as_steps():
    """Each level is a row, each jump one column: the line never slants."""
    drawn = rows([*[1.0] * 8, *[0.5] * 8, *[0.0] * 8])
    columns = ["".join(column) for column in zip(*(row.ljust(text_plot.WIDTH) for row in drawn))]
    assert len(columns) == text_plot.WIDTH
    jumps = [column for column in columns if column.count("*") > 1]
    assert len(jumps) == 2 and "" not in {column.strip() for column in columns}


def test_few_steps_are_wide():
    drawn = rows([1.0, 0.0])
    assert drawn[0].strip("*") == "" and len(drawn[0]) == text_plot.WIDTH // 2
    assert drawn[-1].endswith("*" * (text_plot.WIDTH // 2 - 1))


def test_a_peak_of_one_step_is_not_lost():
    line = [0.0] * 5000
    line[2345] = 1.0
    assert "*" in rows(line)[0]


def test_a_flat_line_and_values_that_are_no_numbers_can_be_drawn():
    assert sum("*" in row for row in rows([0.1, 0.1, 0.1])) == 1
    assert sum("*" in row for row in rows([float("nan"), 1.0, float("inf"), 2.0])) > 1
    assert not any("*" in row for row in rows([float("nan")]))
