"""Build and metadata. Building needs no torch; without a compiler the package is a pure one."""

import os
import re
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))
for name in ("fused_sched", "fused_sched.engines"):  # their own __init__ would import torch
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")))]

from fused_sched.engines import native_build  # noqa: E402

try:
    native_build.check_python()
except native_build.BuildError as error:
    raise SystemExit(f"fused_sched: {error}") from None


class BuildNative(build_ext):
    """csrc/ by fused_sched/engines/native_build.py, which also builds it at a first use."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.unlink(missing_ok=True)  # of an earlier build
        try:
            native_build.compile_library(ROOT / "csrc", target, work=Path(self.build_temp))
        except native_build.BuildError as error:
            if os.environ.get("FUSED_SCHED_CUDA") == "1":
                raise SystemExit(f"fused_sched: FUSED_SCHED_CUDA=1, but {error}") from error
            print(f"fused_sched: no compiled engine: {error}", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        """What was built: installing must not miss a library that could not be."""
        return [path for path in super().get_outputs() if Path(path).exists()]


def version() -> str:
    """The version in `fused_sched/__init__.py`: read as text, since torch may be absent."""
    source = (ROOT / "fused_sched" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError('fused_sched/__init__.py states no `__version__ = "..."`')
    return found.group(1)


setup(
    name="fused_sched",
    version=version(),
    description="Optimizer step and learning-rate schedule in one GPU launch, "
    "behind torch.optim's own names",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # csrc/ travels inside the package: a first use may have to compile it.
    packages=[*find_packages(include=["fused_sched", "fused_sched.*"]), "fused_sched.csrc"],
    package_dir={"fused_sched.csrc": "csrc"},
    package_data={"fused_sched": ["py.typed"], "fused_sched.csrc": ["*.h", "*.cpp", "*.cu"]},
    ext_modules=[Extension("fused_sched.engines._native", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    install_requires=["torch>=2.11"],
    # The Makefile installs the same tools into .venv: keep the bounds in step.
    extras_require={
        "triton": ["triton>=3.6; platform_system == 'Linux'"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "numpy", "setuptools>=64"],
        "demo": ["numpy", "matplotlib", "scikit-learn", "tqdm"],
        "lint": ["ruff~=0.17.0", "mypy~=2.4"],
    },
    zip_safe=False,
)
