"""Rules of a user's own: the guides' examples, and one made up here, on every engine."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import fused_sched
from fused_sched import cli
from fused_sched.optim import FusedOptimizer
from fused_sched.rules import reader
from fused_sched.rules.arithmetic import bias_correction, maximum, sqrt, where

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("eager", "native", "triton")
BLOCK = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.S | re.M)


def files_of(page: str) -> dict[str, str]:
    """Name -> text of every file that a page of the guides shows."""
    return dict(BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of both guides."""
    folder = tmp_path_factory.mktemp("guides")
    for page in ("add_optimizer.md", "from_a_paper.md"):
        for name, text in files_of(page).items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is compiled goes into a folder of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Made(FusedOptimizer):
    """Published by nobody: two moments, one of them optional, a clamp, and every operator."""

    states = {"average": True, "largest": "keep"}

    def __init__(self, params: Any, lr: float = 0.01, betas: Any = (0.9, 0.99), keep: bool = False):
        super().__init__(params, {"lr": lr, "betas": betas, "keep": keep})

    @staticmethod
    def coefficients(lr, beta1, beta2, keep, log_beta1, step):
        scale = sqrt(bias_correction(log_beta1, step))
        scale /= 2
        return lr / scale, 1.0 - beta1, beta2, keep, step == 1

    @staticmethod
    def rule(p, g, average, largest, c):
        lr, weight, beta2, keep, first = c
        average = average + weight * (g - average)
        largest = maximum(beta2 * largest, abs(average))
        odd = (average > 0.5) | ~(g < 0.25) & (p != 0.0)
        size = where(keep != 0.0, largest, 1.0)
        moved = where(odd, average / (size + 1.0), -(0.0 - average))
        slow = where(first != 0.0, 0.5, 1.0)
        return p - lr * slow * moved, average, largest


def expected(params: list[Tensor], grads: list[list[Tensor]], lrs: list[float], keep: bool) -> Any:
    """Made, written anew in float64."""
    average = [torch.zeros_like(p) for p in params]
    largest = [torch.zeros_like(p) for p in params]
    for t, (lr, now) in enumerate(zip(lrs, grads, strict=True), 1):
        scale = (1 - 0.9**t) ** 0.5 / 2
        for i, (p, g) in enumerate(zip(params, now, strict=True)):
            average[i] = 0.9 * average[i] + 0.1 * g
            largest[i] = torch.maximum(0.99 * largest[i], average[i].abs())
            odd = (average[i] > 0.5) | ((g >= 0.25) & (p != 0))
            divisor = (largest[i] if keep else 1.0) + 1.0
            moved = torch.where(odd, average[i] / divisor, average[i])
            params[i] = p - lr / scale * (0.5 if t == 1 else 1.0) * moved
    return params


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_rule_nobody_has_published_follows_its_formula(engine, keep):
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(n, generator=generator, dtype=torch.float64) for n in (1, 130, 2051)]
    grads = [
        [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in start]
        for _ in range(6)
    ]
    lrs = []
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        lrs.clear()
        params = [Parameter(p.clone().to(dtype)) for p in start]
        with fused_sched.use_engine(engine):
            opt = Made(params, lr=0.01, keep=keep)
            sched = fused_sched.lr_scheduler.ExponentialLR(opt, 0.9)
            fused_sched.fuse(opt, sched)
            for now in grads:
                lrs.append(opt.param_groups[0]["lr"])
                for param, grad in zip(params, now, strict=True):
                    param.grad = grad.to(dtype)
                opt.step()
                sched.step()
        true = expected([p.to(dtype).double() for p in start], grads, lrs, keep)
        if dtype == torch.float32:
            rounded = [[g.float().double() for g in now] for now in grads]
            true = expected([p.float().double() for p in start], rounded, lrs, keep)
        for ours, theirs in zip(params, true, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
        assert opt.state[params[0]].keys() == {"step", "average"} | ({"largest"} if keep else set())


class Mixed(FusedOptimizer):
    """Truths of a coefficient and of an element together, under names and in expressions."""

    def __init__(self, params: Any, lr: float = 0.5):
        super().__init__(params, {"lr": lr})

    @staticmethod
    def coefficients(lr, step):
        later = (step > 1) & (lr > 0.0)
        return lr, later

    @staticmethod
    def rule(p, g, c):
        lr, later = c
        moves = later != 0.0
        moves = moves & (g > 0.0)
        both = (lr > 0.0) & moves | ~(later != 0.0)
        return (p - lr * where(both, 1.0, 0.0),)


# Triton's interpreter has no `&` of one number and many; compiled, there is one.
@pytest.mark.parametrize("engine", ["eager", "native"])
def test_truths_of_coefficients_and_of_elements_go_together(engine):
    param = Parameter(torch.zeros(20))
    with fused_sched.use_engine(engine):
        opt = Mixed([param])
        for _ in range(2):
            param.grad = torch.arange(20.0) - 10
            opt.step()
    assert param.tolist() == [-0.5] * 11 + [-1.0] * 9


def digits() -> tuple[Tensor, Tensor]:
    """512 real handwritten digits of scikit-learn."""
    datasets = pytest.importorskip("sklearn.datasets", reason="a tool of make test")
    data = datasets.load_digits()
    return torch.tensor(data.data[:512]).float() / 16, torch.tensor(data.target[:512])


def trained(make: Any, engine: str, images: Tensor, labels: Tensor) -> tuple[list[Tensor], Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    with fused_sched.use_engine(engine):
        opt = make(net.parameters())
        sched = fused_sched.lr_scheduler.OneCycleLR(opt, 3e-3, total_steps=24, cycle_momentum=False)
        fused_sched.fuse(opt, sched)
        for i in range(24):
            batch = slice(64 * (i % 8), 64 * (i % 8) + 64)
            opt.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            opt.step()
            sched.step()
        told = fused_sched.explain(opt)
    return [p.detach() for p in net.parameters()], told


@pytest.mark.parametrize(("file", "name"), [("lion.py", "Lion"), ("power_sign.py", "PowerSign")])
def test_the_guides_examples_train_alike_on_every_engine(guides, file, name):
    images, labels = digits()
    cls = getattr(imported(guides / file), name)
    results = {engine: trained(cls, engine, images, labels) for engine in ENGINES}
    theirs, _ = results["eager"]
    for engine in ("native", "triton"):
        ours, told = results[engine]
        assert told.launches_per_step == 1 and told.fused == ["OneCycleLR"]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def lion_by_hand(params: list[Tensor], images: Tensor, labels: Tensor) -> list[Tensor]:
    """The page's formula in plain torch, with the lr that stock torch's OneCycleLR gives."""
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    torch.nn.utils.vector_to_parameters(torch.cat([p.flatten() for p in params]), net.parameters())
    lr = torch.optim.SGD(net.parameters(), lr=1.0)
    sched = torch.optim.lr_scheduler.OneCycleLR(lr, 3e-3, total_steps=24, cycle_momentum=False)
    averages = [torch.zeros_like(p) for p in net.parameters()]
    for i in range(24):
        batch = slice(64 * (i % 8), 64 * (i % 8) + 64)
        net.zero_grad()
        nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
        with torch.no_grad():
            for p, m in zip(net.parameters(), averages, strict=True):
                p -= lr.param_groups[0]["lr"] * torch.sign(0.9 * m + 0.1 * p.grad)
                m.mul_(0.99).add_(p.grad, alpha=0.01)
        lr.zero_grad()
        lr.step()  # moves nothing; the scheduler looks whether it was called
        sched.step()
    return [p.detach() for p in net.parameters()]


def test_lion_is_lion(guides):
    images, labels = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    start = [p.detach().clone() for p in net.parameters()]
    theirs = lion_by_hand(start, images, labels)
    ours, _ = trained(imported(guides / "lion.py").Lion, "native", images, labels)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_guides_scripts_run_and_pass_the_linter(guides, tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    for run in range(2):
        done = subprocess.run(
            [sys.executable, "train.py"], cwd=guides, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "launches per step: 1;" in done.stdout
        told = "fused_sched: compiling PowerSign, once (a few seconds)\n"
        assert done.stderr == ("" if run else told)
    pytest.importorskip("ruff", reason="a tool of make lint")
    files = [str(path) for path in guides.glob("*.py")]
    settings = ["--config", str(ROOT / "pyproject.toml"), "--ignore", "I001"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", *settings, *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_guides_are_short():
    lines = (ROOT / "docs" / "add_optimizer.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60


NO_COMPILER = """
import sys
sys.path.insert(0, GUIDES)
import torch, fused_sched
from lion import Lion
opt = Lion([torch.nn.Parameter(torch.ones(3))])
opt.param_groups[0]["params"][0].grad = torch.ones(3)
opt.step()
told = fused_sched.explain(opt)
print(told.engine["cpu"], told.reason["cpu"], sep="|")
"""


def test_without_a_compiler_the_rule_runs_on_tensors(guides, tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "CXX": "false"}
    done = subprocess.run(
        [sys.executable, "-c", f"GUIDES = {str(guides)!r}\n{NO_COMPILER}"],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    engine, reason = done.stdout.strip().split("|")
    assert engine == "eager"
    assert reason == "native: Lion could not be compiled: compiling failed: false has exit status 1"


# -- what AdamW has ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_other_dtypes_and_layouts_round_once(engine, dtype):
    torch.manual_seed(0)
    start = [torch.randn(40, dtype=dtype), torch.randn(12, 10, dtype=dtype).t()]
    grads = [torch.randn_like(p) for p in start]
    params = [Parameter(p.clone(memory_format=torch.preserve_format)) for p in start]
    with fused_sched.use_engine(engine):
        opt = Made(params, lr=0.125)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        opt.step()
    wide = [torch.view_as_real(t) if t.is_complex() else t for t in (*start, *grads)]
    true = expected(
        [t.double() for t in wide[:2]], [[t.double() for t in wide[2:]]], [0.125], False
    )
    for ours, theirs in zip(params, true, strict=True):
        ours = torch.view_as_real(ours.detach()) if dtype.is_complex else ours.detach()
        ulp = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours.double(), theirs, rtol=ulp, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scaler_unscales_and_skips(engine):
    param = Parameter(torch.ones(5))
    with fused_sched.use_engine(engine):
        opt = Made([param], lr=0.1)
        param.grad = torch.full((5,), 8.0)
        opt.grad_scale, opt.found_inf = torch.tensor([16.0]), torch.ones(1)
        opt.step()
        assert param.tolist() == [1.0] * 5
        opt.found_inf = torch.zeros(1)
        opt.step()
    plain = Parameter(torch.ones(5))
    plain.grad = torch.full((5,), 0.5)
    Made([plain], lr=0.1).step()
    assert torch.equal(param, plain)


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoints_go_from_engine_to_engine(engine):
    def stepped(opt: Any, param: Parameter, steps: range) -> None:
        for i in steps:
            param.grad = torch.arange(7.0) - i
            opt.step()

    whole = Parameter(torch.ones(7))
    stepped(Made([whole], keep=True), whole, range(5))
    first = Parameter(torch.ones(7))
    with fused_sched.use_engine(engine):
        half = Made([first], keep=True)
        stepped(half, first, range(3))
        saved = half.state_dict()
    second = Parameter(first.detach().clone())
    rest = Made([second], keep=True)
    rest.load_state_dict(saved)
    stepped(rest, second, range(3, 5))
    torch.testing.assert_close(second, whole, rtol=1e-6, atol=1e-6)


def test_a_subclass_that_states_one_function_takes_the_other():
    class Faster(Made):
        @staticmethod
        def coefficients(lr, beta1, beta2, keep, log_beta1, step):
            return 2.0 * lr, 1.0 - beta1, beta2, keep, 0.0

    results = []
    for engine in ENGINES:
        param = Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        with fused_sched.use_engine(engine):
            Faster([param], lr=0.1).step()
        results.append(param.tolist())
    assert results[0] == results[1] == results[2] == [pytest.approx(1 - 0.2 * 0.1 / 2)] * 3


class Halved(fused_sched.optim.SGD):
    """SGD but for one of the two functions."""

    @staticmethod
    def coefficients(lr, momentum, dampening, weight_decay, nesterov, maximize, step):
        sign = 1.0 - 2.0 * maximize
        return lr * 0.5, weight_decay, momentum, 1.0 - dampening, nesterov, sign, step == 1


class Odd(FusedOptimizer):
    """Names that C++ has other uses for, signs of signs, and a state that knows no count."""

    states = {"before": True}
    counts_steps = False

    def __init__(self, params: Any, lr: float = 0.125):
        super().__init__(params, {"lr": lr})

    @staticmethod
    def coefficients(lr, step):
        return lr, 0.1, where(step == 1, 1.0, 0.0)

    @staticmethod
    def rule(p, g, before, c):
        [apply, tenth, first] = c
        nullptr: float = -(-1.0 * p)
        nullptr = -(-nullptr)  # noqa: B002
        xor = 1.0 / (1.0 + abs(0.0 * (-1.0 - abs(g))))
        next_p = nullptr - apply * xor * (g + before + tenth)
        return next_p, where(first != 0.0, 10.0, before)


@pytest.mark.parametrize("make", [Halved, Odd])
def test_a_rule_is_the_same_on_every_engine_whatever_it_inherits_or_names(make):
    results = []
    for engine in ENGINES:
        param = Parameter(torch.ones(33, dtype=torch.float64))
        with fused_sched.use_engine(engine):
            opt = make([param], lr=0.1)
            for _ in range(3):
                param.grad = torch.linspace(-1, 1, 33, dtype=torch.float64)
                opt.step()
        results.append(param.detach())
    for ours in results[1:]:
        torch.testing.assert_close(ours, results[0], rtol=1e-14, atol=1e-14)
    assert (results[0][0] - (1.0 + 3 * 0.05)).abs() < 1e-12 or make is Odd


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loaded_state_without_a_count_is_one_step_old(engine):
    param = Parameter(torch.ones(3))
    with fused_sched.use_engine(engine):
        opt = Odd([param])
        param.grad = torch.zeros(3)
        opt.step()
        saved = opt.state_dict()
        opt.load_state_dict(saved)
        opt.state[param]["before"].fill_(2.0)
        opt.step()
    assert opt.state[param]["before"].tolist() == [2.0] * 3  # the first step would set 10


def test_what_was_imported_runs_though_its_file_changes(tmp_path):
    path = tmp_path / "moving_rule.py"
    head = "from fused_sched.optim import FusedOptimizer\nclass Moving(FusedOptimizer):"
    init = "    def __init__(self, params):\n        super().__init__(params, {'lr': 1.0})"
    text = f"{head}\n    states = {{'m': True}}\n{init}{GOOD}"
    path.write_text(text, encoding="utf-8")
    cls = imported(path).Moving
    path.write_text(text.replace("u = m + g", "u = m + 5.0 * g"), encoding="utf-8")
    param = Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    with fused_sched.use_engine("native"):
        cls([param]).step()
    assert param.tolist() == [-1.0, -1.0]
    with (
        fused_sched.use_engine("triton"),
        pytest.raises(RuntimeError, match="Moving's file has changed since it was imported"),
    ):
        cls([param]).step()


# -- errors --------------------------------------------------------------------------------------

GOOD = """
    @staticmethod
    def coefficients(lr, step):
        return lr, step == 1

    @staticmethod
    def rule(p, g, m, c):
        lr, first = c
        u = m + g
        return p - lr * u, u
"""

BAD = {
    # (what is replaced, by what): (the line, the words)
    ("u = m + g", "u = torch.sign(g)"): (11, r"'torch.sign\(g\)' is not known here; allowed are"),
    ("u = m + g", "u = m ** 2"): (11, r"'m \*\* 2' is not known here"),
    ("u = m + g", "u = m + missing"): (11, "'missing' is not known here"),
    ("u = m + g", "lr = 2 * lr"): (11, "'lr' is a coefficient; assign to another name"),
    ("u = m + g", "if lr > 1: u = g"): (11, r"no branches or loops: write where\("),
    ("u = m + g", "u = g * (g > 0)"): (11, r"'g > 0' is a truth value, not a number"),
    ("u = m + g", "u = where(g, m, g)"): (11, "'g' is a number, not a truth value"),
    ("u = m + g", "u = 0 < g < 1"): (11, "write two comparisons with & between them"),
    ("return p - lr * u, u", "return (p,)"): (9, "must return p and its 1 states"),
    ("return p - lr * u, u", "return p - lr * u"): (12, "must return a tuple"),
    ("lr, first = c", "lr, = c"): (9, r"coefficients\(\) returns 2 values; the rule unpacks 1"),
    ("(lr, step)", "(step, lr)"): (5, "takes lr first and step last"),
    ("(p, g, m, c)", "(p, g, *m, c)"): (9, "takes plain positional parameters alone"),
}


@pytest.mark.parametrize("edit", BAD, ids=lambda edit: edit[1])
def test_what_the_arithmetic_does_not_know_is_refused_by_line(edit, tmp_path):
    before, after = edit
    line, words = BAD[edit]
    text = GOOD.replace(before, after)
    head = "from fused_sched.optim import FusedOptimizer; "
    head += "from fused_sched.rules.arithmetic import *\nclass Bad(FusedOptimizer):"
    path = tmp_path / "bad_rule.py"
    path.write_text(f"{head}\n    states = {{'m': True}}{text}", encoding="utf-8")
    with pytest.raises(reader.RuleError, match=words) as caught:
        imported(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_states_that_the_rule_does_not_take_are_refused():
    with pytest.raises(reader.RuleError, match="Odd.states names 1 tensors, but its rule"):

        class Odd(Made):
            states = {"average": True}


def test_a_class_that_states_half_a_rule_is_refused():
    with pytest.raises(reader.RuleError, match=r"HalfOfIt states no coefficients\(\)"):

        class HalfOfIt(FusedOptimizer):
            @staticmethod
            def rule(p, g, c):
                return (p,)

    with pytest.raises(reader.RuleError, match="List.states is a dict, as"):

        class List(Made):
            states = ["average", "largest"]


def test_a_column_that_no_group_has_is_named():
    class Short(Made):
        def __init__(self, params: Any) -> None:
            FusedOptimizer.__init__(self, params, {"lr": 0.1, "betas": (0.9, 0.99)})

    with pytest.raises(KeyError, match="keep"):
        Short([Parameter(torch.ones(1))])


def test_a_rule_that_cannot_be_read_says_where_to_put_it():
    names = {"Made": Made, "__name__": "typed"}
    code = "class Typed(Made):\n @staticmethod\n def rule(p, g, a, b, c): return p, a, b"
    with pytest.raises(reader.RuleError, match="define the class in a file or a notebook"):
        exec(code, names)


def test_sparse_gradients_are_refused_in_words():
    param = Parameter(torch.ones(3))
    param.grad = torch.ones(3).to_sparse()
    with pytest.raises(
        RuntimeError, match="Made has no form for sparse gradients; make them dense"
    ):
        Made([param]).step()


# -- the command ---------------------------------------------------------------------------------


def test_command_starts():
    done = subprocess.run(
        [sys.executable, "-m", "fused_sched", "rule", "SGD"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "def rule(p, g, buf, c):" in done.stdout


def test_command_prints_a_rule(capsys, guides):
    assert cli.main(["rule", "AdamW"]) == 2
    assert "there are: Adadelta, Adagrad, Adam," in capsys.readouterr().err
    assert cli.main(["rule", "Adam"]) == 0
    assert "def rule(p, g, m, v, largest, c):" in capsys.readouterr().out
    assert cli.main(["rule", f"{guides / 'lion.py'}:Lion", "--as", "cpp"]) == 0
    printed = capsys.readouterr().out
    assert "struct LionRule {" in printed
    assert "const V u = beta1 * m + one_minus_beta1 * g;" in printed
