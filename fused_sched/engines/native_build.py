"""Compile ``csrc/``: at installation, or at first use where the installation had no compiler.

The library knows nothing of torch and uses Python's stable ABI: one build serves every torch and
every Python from 3.10 on. ``setup.py`` runs this file by its path, before there is a package:
it imports neither torch nor anything of ours.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIBRARY = "_native.abi3.so"

# Contraction stays off: a vector body and its scalar tail must round alike, so that results do not
# depend on the number of threads.
_FLAGS = (
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
_SOURCES = ("module", "lean", "cpu")
_VARIANTS = {
    "avx512bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
    "baseline": ("-march=x86-64-v2",),
}
_FLAGS_VARIABLE = "FUSED_SCHED_CXXFLAGS"


class BuildError(RuntimeError):
    """The library cannot be built; the message is one line that says why."""


def built() -> Path:
    """Where installation puts the library."""
    return Path(__file__).resolve().parent / LIBRARY


def sources() -> Path | None:
    """The folder of the C++ sources: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "cpu.cpp").exists():
            return folder
    return None


def cached(folder: Path) -> Path:
    """Where a first use puts the library: a folder of the user's, by the sources' content."""
    digest = hashlib.sha256(" ".join((platform.machine(), *_all_flags())).encode())
    for file in sorted(folder.glob("*.[ch]*")):
        digest.update(file.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "fused_sched" / digest.hexdigest()[:16] / LIBRARY


def library() -> Path:
    """The compiled library, built now if it has to be.

    Raises:
        BuildError: it is not there and cannot be built.
    """
    folder = sources()
    if built().exists() and not _is_stale(folder):
        return built()
    if folder is None:
        raise BuildError("the C++ sources are not installed; install fused_sched again")
    target = cached(folder)
    if not target.exists():
        print("fused_sched: compiling the CPU engine, once (a few seconds)", file=sys.stderr)
        compile_library(folder, target)
    return target


def _is_stale(folder: Path | None) -> bool:
    """Whether a checkout's sources changed since its installation, or other flags are asked for."""
    if os.environ.get(_FLAGS_VARIABLE):
        return True
    if folder is None:
        return False
    then = built().stat().st_mtime
    return any(file.stat().st_mtime > then for file in folder.glob("*.[ch]*"))


def compile_library(folder: Path, target: Path) -> None:
    """Compile every instruction set's variant and link them into ``target``.

    Raises:
        BuildError: there is no compiler, no Python header, or a command failed.
    """
    compiler = _compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = _jobs(compiler, folder, Path(scratch))
        _run_all(list(jobs.values()), Path(scratch))
        linked = Path(scratch, LIBRARY)
        _run([*compiler, *_all_flags(), "-shared", "-o", str(linked), *map(str, jobs)])
        # Copied aside and moved: another process never sees half a library.
        staged = target.with_suffix(f".{os.getpid()}")
        shutil.copy(linked, staged)
        os.replace(staged, target)


def _jobs(compiler: list[str], folder: Path, scratch: Path) -> dict[Path, list[str]]:
    """The command that makes each object file."""
    start = [*compiler, *_all_flags(), f"-I{_python_headers()}"]
    jobs = {}
    for name in _SOURCES:
        place = scratch / f"{name}.o"
        jobs[place] = [*start, "-c", str(folder / f"{name}.cpp"), "-o", str(place)]
    x86 = platform.machine() in ("x86_64", "AMD64")
    for name, flags in _VARIANTS.items() if x86 else [("baseline", ())]:
        place = scratch / f"update_{name}.o"
        source = str(folder / "cpu_update.cpp")
        jobs[place] = [*start, *flags, f"-DFS_ISA={name}", "-c", source, "-o", str(place)]
    return jobs


def _all_flags() -> tuple[str, ...]:
    return *_FLAGS, *os.environ.get(_FLAGS_VARIABLE, "").split()


def _compiler() -> list[str]:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise BuildError("it needs a C++ compiler and found none (g++, clang++ or CXX)")
    return found.split()


def _python_headers() -> Path:
    folder = Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").exists():
        raise BuildError("it needs the Python headers; Python.h is not installed (python3-dev)")
    return folder


def _run_all(commands: list[list[str]], scratch: Path) -> None:
    """Run independent commands at once: by ninja where it is installed, else in threads."""
    ninja = shutil.which("ninja")
    if ninja is None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        return
    lines = ["rule run", "  command = $line"]
    for command in commands:
        line = subprocess.list2cmdline(command).replace("$", "$$")
        lines += [f"build {command[-1]}: run", f"  line = {line}"]
    (scratch / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _run([ninja, "-C", str(scratch), "--quiet"])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        told = (line for line in lines if "error" in line or "not found" in line)
        raise BuildError(f"compiling failed: {next(told, ' '.join(lines))[:300]}")
