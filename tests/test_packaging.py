"""What a user gets who installs the package: its version, its names, its files, no hard Triton."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fused_sched

ROOT = Path(__file__).resolve().parents[1]

# Triton is absent, and stays absent for everything imported later.
TRAIN_WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None

import torch
import fused_sched

ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
for param, optim in ((ours, fused_sched.optim), (theirs, torch.optim)):
    param.grad = torch.linspace(2, -2, 7)
    optim.AdamW([param], lr=0.1, weight_decay=0.1).step()
assert not torch.equal(ours, torch.linspace(-1, 1, 7))
torch.testing.assert_close(ours, theirs)
"""


DEFAULT_ENGINE = """
import torch
import fused_sched
opt = fused_sched.optim.SGD([torch.nn.Parameter(torch.ones(1))])
print(fused_sched.__file__, fused_sched.explain(opt).engine["cpu"])
"""

LIBRARY_BYTES = 6e6
"""A third of it in a wheel, which is to stay below 3 MB."""


def run_python(*args: str, cwd: Path = ROOT, **env: str) -> str:
    """Standard output of a fresh interpreter, in the repository's root."""
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=os.environ | env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that a wheel would hold."""
    target = tmp_path_factory.mktemp("built")
    run_python("setup.py", "--quiet", "build_py", "--build-lib", str(target))
    return target


def test_version_has_one_source():
    source = (ROOT / "fused_sched" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE) == [fused_sched.__version__]
    assert run_python("setup.py", "--version").split()[-1] == fused_sched.__version__


def test_changelog_names_the_version():
    assert f"## [{fused_sched.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_public_names_resolve():
    assert len(set(fused_sched.__all__)) == len(fused_sched.__all__) > 0
    assert [name for name in fused_sched.__all__ if not hasattr(fused_sched, name)] == []


def test_build_ships_every_module_the_type_marker_and_the_sources(built):
    modules = {path.relative_to(ROOT) for path in (ROOT / "fused_sched").rglob("*.py")}
    sources = {Path("fused_sched") / path.relative_to(ROOT) for path in (ROOT / "csrc").iterdir()}
    shipped = {path.relative_to(built) for path in built.rglob("*") if path.is_file()}
    assert shipped == modules | sources | {Path("fused_sched/py.typed")}


def test_shipped_sources_are_compiled_at_the_first_use(built, tmp_path):
    env = {"PYTHONPATH": str(built), "XDG_CACHE_HOME": str(tmp_path), "TRITON_INTERPRET": "0"}
    told = run_python("-c", DEFAULT_ENGINE, cwd=tmp_path, **env)
    assert told.split() == [str(built / "fused_sched" / "__init__.py"), "native"]
    (library,) = tmp_path.rglob("*.so")
    assert library.stat().st_size > 0


@pytest.mark.parametrize(("compiler", "libraries"), [("", 1), ("false", 0)])
def test_build_compiles_the_engine_or_goes_on_without(compiler, libraries, tmp_path):
    folders = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    run_python("setup.py", "--quiet", "build_ext", *folders, CXX=compiler)
    found = list((tmp_path / "lib").rglob("_native.abi3.so"))
    assert len(found) == libraries
    assert sum(library.stat().st_size for library in found) < LIBRARY_BYTES


def test_trains_where_triton_is_not_importable():
    run_python("-W", "error", "-c", TRAIN_WITHOUT_TRITON, TRITON_INTERPRET="0")
