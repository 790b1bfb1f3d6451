"""Build and metadata. A pure package: building it needs neither torch nor a compiler."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


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
    packages=find_packages(include=["fused_sched", "fused_sched.*"]),
    package_data={"fused_sched": ["py.typed"]},
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
