"""Pythons, virtual environments, and the one wheel that all of them install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .rows import ROWS

ROOT = Path(__file__).resolve().parents[2]


class Unavailable(Exception):
    """A row that cannot be had here; the message is one line."""


def run(command: Sequence[str | Path], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, **kwargs)


def checked(command: Sequence[str | Path], what: str, **kwargs: Any) -> str:
    """The standard output of a command that has to end well."""
    done = run(command, **kwargs)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        told = [line for line in lines if "ERROR" in line or "Error" in line]
        raise Unavailable(f"{what}: {(told or lines)[-1][:200]}")
    return done.stdout


def find_python(version: str) -> Path:
    """The executable of a Python, like ``"3.13"``: on PATH or pyenv's, and not free-threaded."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    installed = sorted(pyenv.glob(f"versions/{version}.*/bin/python"), key=patch_number)
    code = "import sys, sysconfig; print(*sys.version_info[:2], sep='.', end='')\n"
    code += "if sysconfig.get_config_var('Py_GIL_DISABLED'): print('t')"
    for found in (sys.executable, shutil.which(f"python{version}"), *reversed(installed)):
        if found and run([found, "-c", code]).stdout == version:
            return Path(found)
    raise Unavailable(f"no Python {version} on this machine")


def patch_number(python: Path) -> list[int]:
    """Of pyenv's ``versions/3.12.10/bin/python``."""
    return [int(part) for part in python.parts[-3].split(".") if part.isdigit()]


def newest_python() -> Path:
    """Of all that the rows name."""
    for version in sorted({row.python for row in ROWS}, key=lambda v: int(v[2:]), reverse=True):
        try:
            return find_python(version)
        except Unavailable:
            continue
    raise SystemExit("matrix: none of the rows' Pythons is on this machine")


def make_environment(python: Path, folder: Path, packages: Iterable[str]) -> Path:
    """Its executable; what is there already stays."""
    inside = folder / "bin" / "python"
    if not inside.exists():
        checked([python, "-m", "venv", folder], "no environment")
    install(inside, *packages)
    return inside


def install(python: Path, *arguments: str | Path) -> None:
    quiet = ("--disable-pip-version-check", "--quiet")
    checked([python, "-m", "pip", *quiet, "install", *arguments], "cannot be installed")


def copy_sources(target: Path) -> None:
    """The repository's files, but for those that git ignores."""
    shutil.rmtree(target, ignore_errors=True)
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, checked(listed, "no list of files", cwd=ROOT).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def build_wheel(folder: Path) -> tuple[Path, str]:
    """(the wheel, the version of the Python that built it); the files it is of stay in source/."""
    python = make_environment(newest_python(), folder / "build", ("setuptools>=64", "wheel"))
    copy_sources(folder / "source")
    wheels = folder / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    command = ("-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps")
    place = ("--no-build-isolation", "--wheel-dir", wheels, folder / "source")
    checked([python, *command, *place], "no wheel")
    (wheel,) = wheels.glob("*-abi3-*.whl")
    return wheel, checked([python, "--version"], "no Python").split()[1]
