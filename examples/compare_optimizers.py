"""Train two small nets with every optimizer of fused_sched and with its original, and compare.

* digits: the convolutional net and the handwritten digits of train_digits.py;
* text: a character-level transformer, on this repository's own documentation (docs/*.md).

Each optimizer trains each net twice, from the same seed, over the same batches, through one cycle
of OneCycleLR: once as the original has it, once as fused_sched has it, with the schedule in the
step. The original is torch's class of the same name, with `fused=True` where it takes that. Where
torch has none it is the class of a package that is installed (lion-pytorch, schedulefree, timm),
or else the rule's own formula on torch tensors. The table says which.

Writes a table to stdout and a figure of the losses (`--out`, by default optimizers.png). Exits with
1 if a learning rate differs from the original's by more than 1e-12 of the peak, or a loss of the
first tenth of the steps by more than 1e-4 of it. In float32 roundings grow as a training goes on,
between torch's own implementations too; `--dtype float64` shows how little else there is (of NAdam
and ASGD torch keeps numbers in float32 even then).

    python examples/compare_optimizers.py [--rules SGD AdamW ...] [--tasks digits text]
        [--steps 300] [--dtype float32] [--threads 1] [--device cpu] [--out optimizers.png]
"""

import argparse
import importlib
import inspect
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train_digits import (
    BATCH_SIZE,
    LR_TOLERANCE,
    SEED,
    Training,
    batch_indices,
    load_data,
    make_model,
    progress,
    time_step,
)

import fused_sched

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter
except ModuleNotFoundError as missing:
    sys.exit(f"The comparison needs {missing.name}: pip install matplotlib scikit-learn")

LOSS_TOLERANCE = 1e-4  # relative, in the first tenth of the steps: a thousand float32 roundings
DOCS = Path(__file__).resolve().parent.parent / "docs"
CONTEXT = 32  # characters that the transformer sees
WIDTH, HEADS, LAYERS = 32, 2, 2
SEQUENCES = 16  # of one batch of text

PACKAGES = ("lion_pytorch", "schedulefree", "timm.optim")
"""Where a class is looked for that torch lacks, by its name in any case of letters."""

PEAKS = {"SGD": 0.1, "ASGD": 0.2, "RAdam": 2e-2, "RMSprop": 5e-3, "Rprop": 1e-3}
PEAKS |= {"Lion": 3e-3, "LARS": 1.0, "SGDScheduleFree": 1.0}
"""Peak lr where five times the class's default is not a sensible one for these two nets."""

OPTIONS = {"SGD": {"momentum": 0.9}, "Rprop": {"step_sizes": (1e-6, 1e-3)}}
"""Of a constructor, beside lr. Rprop, made for whole data sets, must not run off on noise."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: how it makes its optimizer and its schedule.

    `context` is what it trains and steps in.
    """

    name: str
    make: Callable[..., Any]
    schedule: Callable[..., Any]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True)
class Task:
    """A net and its batches: inputs, and the class of every output."""

    name: str
    make_model: Callable[[], nn.Module]
    batches: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Run:
    """What one training left behind: `lrs[i]` and `losses[i]` belong to step i."""

    lrs: list[float]
    losses: list[float]
    params: Tensor


@dataclass(frozen=True)
class Comparison:
    """One rule on one task; of each pair the original's comes first; seconds are of one step."""

    task: str
    rule: str
    original: str
    runs: tuple[Run, Run]
    seconds: tuple[float, float]

    @property
    def loss_difference(self) -> float:
        """The largest between the losses of the first tenth, relative to the original's."""
        theirs, ours = (run.losses[: len(run.losses) // 10 + 1] for run in self.runs)
        return max(abs(a - b) / a for a, b in zip(theirs, ours, strict=True))

    @property
    def lr_difference(self) -> float:
        """The largest over all steps, relative to the peak."""
        theirs, ours = (run.lrs for run in self.runs)
        return max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) / max(theirs)

    @property
    def param_difference(self) -> float:
        """The largest at the end."""
        theirs, ours = (run.params for run in self.runs)
        return float((theirs - ours).abs().max())


# ---------------------------------------------------------------------------- the two sides


def rules() -> list[str]:
    """Every optimizer of fused_sched."""
    return [name for name in fused_sched.optim.__all__ if name != "FusedOptimizer"]


def ours(rule: str) -> Side:
    """fused_sched's class, its schedule in the step."""
    return Side("fused_sched", getattr(fused_sched.optim, rule), fused_cycle)


def fused_cycle(opt: Any, **arguments: Any) -> Any:
    """fused_sched's OneCycleLR, in `opt.step()`'s launch."""
    sched = fused_sched.lr_scheduler.OneCycleLR(opt, **arguments)
    fused_sched.fuse(opt, sched)
    return sched


def original(rule: str) -> Side:
    """Torch's class, else that of a package, else the rule's formula on torch tensors."""
    cycle = torch.optim.lr_scheduler.OneCycleLR
    found = getattr(torch.optim, rule, None)
    if found is not None:
        if "fused" in inspect.signature(found).parameters:
            return Side("torch fused", partial(found, fused=True), cycle)
        return Side("torch", found, cycle)
    for package in PACKAGES:
        found = class_in(package, rule)
        if found is not None:
            return Side(package, found, cycle)
    evaluated = partial(fused_sched.use_engine, "eager")
    return Side("its formula", getattr(fused_sched.optim, rule), cycle, evaluated)


def class_in(package: str, rule: str) -> Any:
    """The class of that name in a package; None if either is missing."""
    try:
        module = importlib.import_module(package)
    except ImportError:
        return None
    classes = {
        name.lower(): found for name, found in vars(module).items() if inspect.isclass(found)
    }
    return classes.get(rule.lower())


def peak_of(rule: str) -> float:
    """The peak lr: of PEAKS, or five times the default, as one cycle stands more than a flat lr."""
    default = inspect.signature(getattr(fused_sched.optim, rule)).parameters["lr"].default
    return PEAKS.get(rule, 5 * default)


def prepare(side: Side, rule: str, model: nn.Module, total_steps: int) -> Training:
    """A model with its optimizer and one cycle of lr."""
    peak = peak_of(rule)
    opt = side.make(model.parameters(), lr=peak, **OPTIONS.get(rule, {}))
    sched = side.schedule(opt, max_lr=peak, total_steps=total_steps, cycle_momentum=False)
    if hasattr(opt, "train"):  # Schedule-Free steps in this mode only
        opt.train()

    def step() -> None:
        opt.step()
        sched.step()

    return Training(model, opt, sched, step)


# ---------------------------------------------------------------------------- the two tasks


def digits(steps: int, device: torch.device, dtype: torch.dtype) -> Task:
    """The demo's net and data."""
    data = load_data(device)
    images, labels = data.train_images.to(dtype), data.train_labels
    epochs = -(-steps // (len(images) // BATCH_SIZE))
    indices = batch_indices(len(images), epochs, device)[:steps]
    batches = [(images[chosen], labels[chosen]) for chosen in indices]
    return Task("digits", lambda: make_model(device).to(dtype), batches)


def text(steps: int, device: torch.device, dtype: torch.dtype) -> Task:
    """What character comes next: sequences of the documentation, from places drawn by SEED."""
    written = "".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md")))
    known = {character: number for number, character in enumerate(sorted(set(written)))}
    codes = torch.tensor([known[character] for character in written])
    generator = torch.Generator().manual_seed(SEED)
    starts = torch.randint(len(codes) - CONTEXT, (steps, SEQUENCES, 1), generator=generator)
    sequences = codes[starts + torch.arange(CONTEXT + 1)].to(device)
    batches = [(batch[:, :-1], batch[:, 1:]) for batch in sequences]
    return Task("text", lambda: make_transformer(len(known)).to(device, dtype), batches)


def make_transformer(characters: int) -> nn.Module:
    """Thirty thousand parameters in 28 tensors; SEED decides their first values."""
    torch.manual_seed(SEED)
    return Transformer(characters)


class Transformer(nn.Module):
    """Character numbers `[n, CONTEXT]` to a score of every next character `[n, CONTEXT, known]`."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.meaning = nn.Embedding(characters, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.scores = nn.Linear(WIDTH, characters)
        self.register_buffer("later", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters: Tensor) -> Tensor:
        x = self.meaning(characters) + self.place.weight
        return self.scores(self.layers(x, mask=self.later, is_causal=True))


TASKS = {"digits": digits, "text": text}


# ---------------------------------------------------------------------------- training


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean cross entropy of a batch."""
    inputs, classes = batch
    return cross_entropy(model(inputs).flatten(0, -2), classes.flatten())


def train(side: Side, rule: str, task: Task) -> Run:
    """Train a fresh net over all batches."""
    training = prepare(side, rule, task.make_model(), len(task.batches))
    lrs, losses = [], []
    for batch in task.batches:
        lrs.append(float(training.opt.param_groups[0]["lr"]))
        training.opt.zero_grad(set_to_none=True)
        loss = loss_of(training.model, batch)
        loss.backward()
        training.step()
        losses.append(loss.detach())
    params = nn.utils.parameters_to_vector(training.model.parameters()).detach()
    return Run(lrs, torch.stack(losses).tolist(), params)


def measure(sides: Sequence[Side], rule: str, task: Task, rounds: int = 7) -> list[float]:
    """Seconds per `opt.step(); sched.step()` of each side: the median of `rounds`, by turns."""
    trainings = []
    for side in sides:
        with side.context():
            trainings.append(ready_to_step(side, rule, task))
    samples: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, training, seconds in zip(sides, trainings, samples, strict=True):
            with side.context():
                seconds.append(time_step(training.step, 10, task.batches[0][0].device))
    return [statistics.median(seconds) for seconds in samples]


def ready_to_step(side: Side, rule: str, task: Task) -> Training:
    """A fresh training that has its gradients and a few steps behind it."""
    training = prepare(side, rule, task.make_model(), 10**9)  # a schedule that does not end here
    loss_of(training.model, task.batches[0]).backward()
    for _ in range(3):
        training.step()
    return training


def compare(rule: str, task: Task) -> Comparison:
    """Train with both sides, then time their steps."""
    sides = original(rule), ours(rule)
    runs = []
    for side in sides:
        with side.context():
            runs.append(train(side, rule, task))
    theirs, mine = measure(sides, rule, task)
    return Comparison(task.name, rule, sides[0].name, (runs[0], runs[1]), (theirs, mine))


# ---------------------------------------------------------------------------- report

COLORS = [
    tuple(shade * part for part in color)
    for shade in (1.0, 0.5)  # the ten colors, then the ten as dark ones
    for color in colormaps["tab10"].colors
]

HEADER = (
    *("task", "rule", "original", "loss", "ours", "lr diff", "loss diff", "param diff"),
    *("us/step", "ours", "ratio"),
)
LEGEND = """
original: what fused_sched ("ours") is compared with. loss: mean of the last tenth of the steps.
Largest differences: of the lr, relative to its peak; of the losses of the first tenth, relative; of
the params at the end. us/step: opt.step(); sched.step(), median; ratio: ours to the original's."""


def cells(one: Comparison) -> tuple[str, ...]:
    """One row of the table."""
    tenth = -max(1, len(one.runs[0].losses) // 10)
    losses = [f"{statistics.mean(run.losses[tenth:]):.4f}" for run in one.runs]
    times = [f"{seconds * 1e6:.1f}" for seconds in one.seconds]
    apart = one.lr_difference, one.loss_difference, one.param_difference
    differences = [f"{difference:.1e}" for difference in apart]
    ratio = f"{one.seconds[1] / one.seconds[0]:.2f}"
    return (one.task, one.rule, one.original, *losses, *differences, *times, ratio)


def print_table(comparisons: Sequence[Comparison]) -> None:
    """One row per task and rule; words to the left, numbers to the right."""
    table = [HEADER, *map(cells, comparisons)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        words = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        print("  ".join(words + numbers))
    print(LEGEND)


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """The losses of each task: the original's as a wide pale line, ours as a thin one upon it."""
    tasks = list(dict.fromkeys(one.task for one in comparisons))
    names = list(dict.fromkeys(one.rule for one in comparisons))
    figure = Figure(figsize=(6 * len(tasks) + 2, 5), layout="constrained")
    panels = dict(zip(tasks, figure.subplots(1, len(tasks), squeeze=False)[0], strict=True))
    for one in comparisons:
        theirs, mine = (smoothed(run.losses) for run in one.runs)
        line = {"color": COLORS[names.index(one.rule) % len(COLORS)]}
        panels[one.task].plot(theirs, **line, linewidth=5, alpha=0.3)
        panels[one.task].plot(mine, **line, linewidth=1.2, label=one.rule)
    for task, axes in panels.items():
        axes.set(title=task, xlabel="step", ylabel="training loss (running mean)", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.grid(which="both", alpha=0.2)
    handles, labels = panels[tasks[0]].get_legend_handles_labels()
    title = "wide: original\nthin: fused_sched"
    figure.legend(handles, labels, loc="outside right center", title=title)
    figure.savefig(path, dpi=120)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Each the mean of itself and those before it, as many as a twentieth of all."""
    span = max(1, len(losses) // 20)
    return [statistics.mean(losses[max(0, i + 1 - span) : i + 1]) for i in range(len(losses))]


def failures(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What differs from the original by more than the example allows."""
    for one in comparisons:
        if not one.lr_difference <= LR_TOLERANCE:
            yield f"{one.task}, {one.rule}: lr differs by {one.lr_difference:.1e} of the peak"
        if not one.loss_difference <= LOSS_TOLERANCE:
            yield f"{one.task}, {one.rule}: losses differ by {one.loss_difference:.1e} at the start"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train with every optimizer, twice, and compare.")
    parser.add_argument("--rules", nargs="+", choices=rules(), default=rules(), metavar="NAME")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, default=Path("optimizers.png"), help="the figure")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; 0 if every schedule was the original's, else 1."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    setting = options.steps, options.device, getattr(torch, options.dtype)
    tasks = [TASKS[name](*setting) for name in options.tasks]
    pairs = list(product(tasks, options.rules))
    comparisons = [compare(rule, task) for task, rule in progress(pairs, "training")]
    print_table(comparisons)
    draw(comparisons, options.out)
    print(f"figure: {options.out}")
    found = list(failures(comparisons))
    for failure in found:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
