"""Train one small convolutional net on real handwritten digits four times, and compare.

The data are the 1,797 images of 8 x 8 pixels inside scikit-learn (`load_digits`); nothing is
downloaded. From the same seed, over the same batches, the net is trained by

1. torch default: `torch.optim.AdamW` and `torch.optim.lr_scheduler.OneCycleLR`;
2. torch fused: the same with `AdamW(fused=True)`;
3. fused_sched, explicit: the first loop, the import changed;
4. fused_sched, fused: after `fuse()`. On a GPU the whole iteration (forward, backward, step) is one
   captured CUDA graph, replayed for every batch, and the schedule advances in it.

Writes a table to stdout and a figure (`--out`, by default demo.png). Exits with 1 if a learning
rate differs from stock torch's by more than 1e-12 of the peak, or the test accuracy by more than
one image in 100.

    python examples/train_digits.py [--epochs 20] [--out demo.png]
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fused_sched

try:
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
except ModuleNotFoundError as missing:
    sys.exit(f"The demo needs {missing.name}: pip install matplotlib scikit-learn")

SEED = 0
PEAK_LR = 1e-2
WEIGHT_DECAY = 1e-2
BATCH_SIZE = 64
TEST_IMAGES = 360  # one fifth
LR_TOLERANCE = 1e-12  # of the peak
ACCURACY_TOLERANCE = 0.01  # one test image in 100


@dataclass(frozen=True)
class Digits:
    """Images are float32 `[n, 1, 8, 8]` in 0 ... 1, labels int64 `[n]`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Training:
    """A model with its optimizer and scheduler.

    `step` is what a loop calls after `backward()`. Keep all four: an optimizer refers to its
    schedulers weakly, and `opt.step`, once a scheduler has wrapped it, to the optimizer.
    """

    model: nn.Module
    opt: torch.optim.Optimizer
    sched: torch.optim.lr_scheduler.LRScheduler
    step: Callable[[], None]


@dataclass(frozen=True)
class Variant:
    """One way to train; `graphed` says that a GPU replays the whole iteration."""

    name: str
    prepare: Callable[[nn.Module, int], Training]
    graphed: bool = False


@dataclass(frozen=True)
class Result:
    """What one training left behind: `lrs[i]` and `losses[i]` belong to step i."""

    engine: str
    lrs: list[float]
    losses: list[float]
    params: Tensor
    accuracy: float


# ---------------------------------------------------------------------------- the four ways


def stock(model: nn.Module, total_steps: int, fused: bool | None = None) -> Training:
    """Torch's own pair."""
    opt = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=fused)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, PEAK_LR, total_steps)

    def step() -> None:
        opt.step()
        sched.step()

    return Training(model, opt, sched, step)


def explicit(model: nn.Module, total_steps: int) -> Training:
    """The same two lines and the same two calls, from fused_sched."""
    opt = fused_sched.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    sched = fused_sched.lr_scheduler.OneCycleLR(opt, PEAK_LR, total_steps)

    def step() -> None:
        opt.step()
        sched.step()

    return Training(model, opt, sched, step)


def fused(model: nn.Module, total_steps: int) -> Training:
    """The same pair, with the schedule in `opt.step()`'s launch."""
    training = explicit(model, total_steps)
    fused_sched.fuse(training.opt, training.sched)
    return training


VARIANTS = (
    Variant("torch default", stock),
    Variant("torch fused", partial(stock, fused=True)),
    Variant("fused_sched, explicit", explicit),
    Variant("fused_sched, fused", fused, graphed=True),
)


# ---------------------------------------------------------------------------- data and model


def load_data(device: torch.device) -> Digits:
    """The digits, shuffled by SEED and split into training and test images."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8)[order].to(device)
    x = x / 16  # pixels are 0 ... 16
    y = torch.tensor(labels, dtype=torch.int64)[order].to(device)
    return Digits(x[TEST_IMAGES:], y[TEST_IMAGES:], x[:TEST_IMAGES], y[:TEST_IMAGES])


def batch_indices(images: int, epochs: int, device: torch.device) -> list[Tensor]:
    """Every batch of the training, of equal size (a graph's input has one shape)."""
    generator = torch.Generator().manual_seed(SEED)
    whole = images - images % BATCH_SIZE
    orders = [torch.randperm(images, generator=generator)[:whole] for _ in range(epochs)]
    return list(torch.cat(orders).to(device).split(BATCH_SIZE))


def make_model(device: torch.device) -> nn.Module:
    """Ten thousand parameters in six tensors; SEED decides their first values."""
    torch.manual_seed(SEED)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),  # max-pooling is not deterministic on a GPU
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    ).to(device)


# ---------------------------------------------------------------------------- training


def eager_iteration(training: Training) -> Callable[[Tensor, Tensor], Tensor]:
    """The textbook loop's body: images, labels -> loss."""

    def iterate(images: Tensor, labels: Tensor) -> Tensor:
        training.opt.zero_grad(set_to_none=True)
        loss = cross_entropy(training.model(images), labels)
        loss.backward()
        training.step()
        return loss.detach()

    return iterate


def graphed_iteration(
    training: Training, images: Tensor, labels: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same body as a captured CUDA graph: images, labels -> loss.

    PyTorch's recipe, with one difference. The warm-up on a side stream runs forward and backward
    only, so that it trains nothing: `fuse()` has prepared the optimizer for a first step under
    capture. The first replay is then the first step.
    """
    model, opt = training.model, training.opt
    static_images, static_labels = images.clone(), labels.clone()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            opt.zero_grad(set_to_none=True)
            cross_entropy(model(static_images), static_labels).backward()
    torch.cuda.current_stream().wait_stream(side)

    opt.zero_grad(set_to_none=True)  # the graph allocates its own gradients
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = cross_entropy(model(static_images), static_labels)
        loss.backward()
        opt.step()  # each replay advances the schedule too

    def iterate(images: Tensor, labels: Tensor) -> Tensor:
        static_images.copy_(images)
        static_labels.copy_(labels)
        graph.replay()
        return loss.detach().clone()

    return iterate


def train(variant: Variant, data: Digits, batches: list[Tensor]) -> Result:
    """Train a fresh model over `batches` and test it."""
    device = data.train_images.device
    training = variant.prepare(make_model(device), len(batches))
    replayed = variant.graphed and device.type == "cuda"
    if replayed:
        first = batches[0]
        images, labels = data.train_images[first], data.train_labels[first]
        iterate = graphed_iteration(training, images, labels)
    else:
        iterate = eager_iteration(training)

    lrs, losses = [], []
    for batch in progress(batches, variant.name):
        lrs.append(float(training.opt.param_groups[0]["lr"]))  # after a replay: one fetch
        losses.append(iterate(data.train_images[batch], data.train_labels[batch]))

    return Result(
        engine=engine_of(training.opt) + (" in a CUDA graph" if replayed else ""),
        lrs=lrs,
        losses=torch.stack(losses).tolist(),
        params=nn.utils.parameters_to_vector(training.model.parameters()).detach(),
        accuracy=accuracy_of(training.model, data),
    )


@torch.no_grad()
def accuracy_of(model: nn.Module, data: Digits) -> float:
    """The share of test images whose digit the model names."""
    hits = model(data.test_images).argmax(dim=1) == data.test_labels
    return float(hits.float().mean())


def engine_of(opt: torch.optim.Optimizer) -> str:
    """Who executes this optimizer's step."""
    if type(opt).__module__.startswith("torch."):
        return "torch"
    return ", ".join(sorted(set(fused_sched.explain(opt).engine.values())))


# ---------------------------------------------------------------------------- time per step


def measure_steps(data: Digits, rounds: int = 30, steps: int = 20) -> list[float]:
    """Seconds per `opt.step(); sched.step()` of each variant: the median of `rounds`.

    The gradients stay as they are, so this is the step alone. The variants take turns, so that a
    machine that slows down slows all of them.
    """
    trainings = [ready_to_step(variant, data) for variant in VARIANTS]
    seconds: list[list[float]] = [[] for _ in VARIANTS]
    for _ in progress(range(rounds), "time per step"):
        for training, samples in zip(trainings, seconds, strict=True):
            samples.append(time_step(training.step, steps, data.train_images.device))
    return [statistics.median(samples) for samples in seconds]


def ready_to_step(variant: Variant, data: Digits) -> Training:
    """A fresh training that has its gradients and a few steps behind it."""
    device = data.train_images.device
    training = variant.prepare(make_model(device), 10**9)  # a schedule that does not end here
    images, labels = data.train_images[:BATCH_SIZE], data.train_labels[:BATCH_SIZE]
    cross_entropy(training.model(images), labels).backward()
    for _ in range(3):
        training.step()
    if not (variant.graphed and device.type == "cuda"):
        return training
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.opt.step()
    return replace(training, step=graph.replay)


def time_step(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds per call of `step`, over `steps` calls and until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / steps


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; the CPU is never ahead of itself."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------------------- report


def lr_difference(result: Result, reference: Result) -> float:
    """The largest difference over all steps, relative to the peak."""
    pairs = zip(result.lrs, reference.lrs, strict=True)
    return max(abs(ours - theirs) for ours, theirs in pairs) / max(reference.lrs)


RATIOS = ("to default", "to fused")
"""Of the time per step: to the first two variants', torch's."""


def print_table(results: dict[str, Result], seconds: list[float]) -> None:
    """One row per variant, compared with the first."""
    reference = next(iter(results.values()))
    header = ("", "final loss", "accuracy", "lr diff", "param diff", "us/step", *RATIOS, "engine")
    rows = [header]
    for (name, result), duration in zip(results.items(), seconds, strict=True):
        rows.append(
            (
                name,
                f"{result.losses[-1]:.6f}",
                f"{result.accuracy:.2%}",
                f"{lr_difference(result, reference):.1e}",
                f"{float((result.params - reference.params).abs().max()):.1e}",
                f"{duration * 1e6:.1f}",
                *(f"{duration / seconds[number]:.2f}" for number in range(len(RATIOS))),
                result.engine,
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0], cells[-1] = row[0].ljust(widths[0]), row[-1]
        print("  ".join(cells))
    print("\nlr diff: largest over all steps, of the peak lr. param diff: largest at the end.")
    print("us/step: opt.step(); sched.step(), median.")


def draw(results: dict[str, Result], path: Path) -> None:
    """Learning rate and loss of the variants, overlaid: wide below, narrow above."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    lr_axes, loss_axes = figure.subplots(1, 2)
    styles = (("0.8", 7, "-"), ("0.5", 4.5, "-"), ("tab:blue", 3, "-"), ("tab:red", 1.2, "--"))
    for (name, result), (color, width, style) in zip(results.items(), styles, strict=True):
        line = {"color": color, "linewidth": width, "linestyle": style, "label": name}
        lr_axes.plot(result.lrs, **line)
        loss_axes.semilogy(result.losses, **line)
    lr_axes.set(title="learning rate", xlabel="step")
    loss_axes.set(title="training loss", xlabel="step")
    lr_axes.legend()
    figure.savefig(path, dpi=120)


def failures(results: dict[str, Result]) -> list[str]:
    """What differs from stock torch by more than the example allows."""
    (_, reference), *others = results.items()
    found = []
    for name, result in others:
        difference = lr_difference(result, reference)
        if not difference <= LR_TOLERANCE:
            found.append(f"{name}: lr differs by {difference:.1e} of the peak")
        if abs(result.accuracy - reference.accuracy) > ACCURACY_TOLERANCE:
            found.append(f"{name}: accuracy {result.accuracy:.2%}, not {reference.accuracy:.2%}")
    return found


def progress(items: Iterable, label: str) -> Iterator:
    """Yield `items` behind a progress bar: tqdm's, or a plain one where tqdm is missing."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from plain_progress(list(items), label)
    else:
        yield from tqdm(items, desc=label.ljust(22), leave=True)


def plain_progress(items: list, label: str) -> Iterator:
    """A bar of forty characters on stderr."""
    for done, item in enumerate(items, start=1):
        yield item
        bar = "#" * (40 * done // len(items))
        print(f"\r{label:22} [{bar:40}] {done}/{len(items)}", end="", file=sys.stderr)
    print(file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; 0 if fused_sched trained as stock torch did, else 1."""
    parser = argparse.ArgumentParser(description="Train on handwritten digits, four ways.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the figure")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # the net is too small to share out; threads would only wait
    # cuBLAS is deterministic only with a fixed workspace; it reads this when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(device)
    batches = batch_indices(len(data.train_labels), options.epochs, device)
    results = {variant.name: train(variant, data, batches) for variant in VARIANTS}
    print_table(results, measure_steps(data))
    draw(results, options.out)
    print(f"figure: {options.out}")

    found = failures(results)
    for failure in found:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
