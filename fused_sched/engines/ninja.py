"""Compile commands, run by ninja."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class BuildError(RuntimeError):
    """The library cannot be built; the message is one line that says why."""


class Job(NamedTuple):
    """One source, and the command that compiles it, but for its place and the object's."""

    source: str
    command: list[str]


def build(folder: Path, jobs: Mapping[str, Job], link: Sequence[str], target: str) -> None:
    """Compile each job to ``folder/<name>.o`` and link them all to ``folder/target``.

    What is newer than its sources and headers is kept. Without ninja the commands run one after
    the other.

    Raises:
        BuildError: a command failed; says its first error.
    """
    ninja = _ninja()
    if ninja is None:
        for name, job in jobs.items():
            run([*job.command, job.source, "-o", f"{folder}/{name}.o"])
        run([*link, *(f"{folder}/{name}.o" for name in jobs), "-o", f"{folder}/{target}"])
        return
    (folder / "build.ninja").write_text(_rules(jobs, link, target), encoding="utf-8")
    run([*ninja, "--quiet", "-C", str(folder), target], compiler=link[0])


def _ninja() -> list[str] | None:
    found = shutil.which("ninja")
    if found:
        return [found]
    return [sys.executable, "-m", "ninja"] if importlib.util.find_spec("ninja") else None


def _rules(jobs: Mapping[str, Job], link: Sequence[str], target: str) -> str:
    """The text of ``build.ninja``."""
    lines = ["ninja_required_version = 1.3", ""]
    for name, job in jobs.items():
        lines += [
            f"rule {name}",
            f"  command = {_command(job.command)} -MD -MF $out.d $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            f"build {name}.o: {name} {_path(job.source)}",
            "",
        ]
    objects = " ".join(f"{name}.o" for name in jobs)
    lines += ["rule link", f"  command = {_command(link)} $in -o $out"]
    lines += [f"build {target}: link {objects}", ""]
    return "\n".join(lines)


def _command(parts: Sequence[str]) -> str:
    return shlex.join(parts).replace("$", "$$")


def _path(path: str) -> str:
    return "".join(f"${c}" if c in "$ :" else c for c in path)


def run(command: Sequence[str], compiler: str | None = None) -> None:
    """Run one command.

    Args:
        compiler: what ninja, as the command, runs.

    Raises:
        BuildError: it failed; says its first error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"compiling failed: {error}") from error
    if done.returncode == 0:
        return
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if compiler is not None:  # what ninja says of itself
        lines = [line for line in lines if not line.startswith(("FAILED", "ninja: ", compiler))]
    errors = (line for line in lines if "error" in line or "not found" in line)
    silent = f"{compiler or command[0]} has exit status {done.returncode}"
    raise BuildError(f"compiling failed: {(next(errors, ' '.join(lines)) or silent)[:300]}")
