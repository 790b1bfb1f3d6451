"""Compile ``csrc/``: at installation, or at first use where the installation had no compiler.

The library knows nothing of torch and uses Python's stable ABI: one build serves every torch and
every Python from 3.10 on. With CUDA code in it, it loads without a driver too. ``setup.py`` imports
this where neither torch nor Triton is installed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import native_sources
from .ninja import BuildError, Job, build

LIBRARY = "_native.abi3.so"

# Contraction stays off: a vector body and its scalar tail must round alike, so that results do not
# depend on the number of threads.
_FLAGS = (
    *("-std=c++17", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
_CACHED_SOURCES = ("cached", "cached_launch", "cached_params", "cached_schedule", "cached_call")
_SOURCES = ("module", "driver", "cpu", *_CACHED_SOURCES)
_VARIANTS = {
    "avx512bf16": ("-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
    "avx2": ("-march=x86-64-v3",),
    "baseline": ("-march=x86-64-v2",),
}
_FLAGS_VARIABLE = "FUSED_SCHED_CXXFLAGS"
_ARCHS_VARIABLE = "TORCH_CUDA_ARCH_LIST"
_ARCHS = "8.0;9.0;10.0"
_NVCC_FLAGS = ("-std=c++17", "-Xcompiler=-O2,-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all")
_NVCC_LINK_FLAGS = ("-shared", "-cudart=static", "-nodlink", "-Xlinker=--exclude-libs,ALL")


def check_python(free_threaded: bool | None = None) -> None:
    """Refuse a Python that no build of ours serves.

    Args:
        free_threaded: whether Python runs without its lock; None asks this one.

    Raises:
        BuildError: it does, and has no stable ABI either.
    """
    if free_threaded is None:
        free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if free_threaded:
        raise BuildError("this Python is a free-threaded build; use the ordinary one, with the GIL")


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


def cached(csrc: Path, archs: Sequence[str] = ()) -> Path:
    """Where a first use puts the library: a folder of the user's, by the sources' content."""
    cuda = (*_NVCC_FLAGS, *archs) if archs else ()
    made = hashlib.sha256(" ".join((platform.machine(), *_all_flags(), *cuda)).encode())
    made.update(_digest(csrc).encode())
    return cache_folder() / made.hexdigest()[:16] / LIBRARY


def cache_folder() -> Path:
    """Where libraries go that are compiled at a first use.

    Raises:
        BuildError: the user has no folder.
    """
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        home = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise BuildError(f"there is no folder to build into: {error}") from error
    return home / "fused_sched"


def _digest(csrc: Path) -> str:
    return native_sources.digest(csrc, native_sources.generated(native_sources.built_in()))


def library(present: str | None = None) -> Path:
    """The compiled library, built now if it has to be.

    Args:
        present: compute capability of a GPU that the installed library does not serve, ``"9.0"``.

    Raises:
        BuildError: it is not there and cannot be built.
    """
    check_python()
    csrc = sources()
    if present is None and built().exists() and not _is_stale(csrc):
        return built()
    if csrc is None:
        raise BuildError("the C++ sources are not installed; install fused_sched again")
    archs = cuda_archs(present)
    target = cached(csrc, archs)
    if not target.exists():
        what = "CUDA engine, once (up to a minute)" if archs else "CPU engine, once (half a minute)"
        print(f"fused_sched: compiling the {what}", file=sys.stderr)
        compile_library(csrc, target, archs)
    return target


def _is_stale(csrc: Path | None) -> bool:
    """Whether a checkout's sources changed since its installation, or other flags are asked for."""
    if os.environ.get(_FLAGS_VARIABLE):
        return True
    if csrc is None or csrc.parent == built().parent.parent:  # not a checkout
        return False
    return _digest(csrc).encode() not in built().read_bytes()


def cuda_archs(present: str | None = None) -> list[str]:
    """What to compile CUDA code for, ``["8.0", "9.0+PTX"]``: a GPU or FUSED_SCHED_CUDA=1 asks."""
    if present is None and os.environ.get("FUSED_SCHED_CUDA") != "1":
        return []
    listed = os.environ.get(_ARCHS_VARIABLE) or present or _ARCHS
    archs = dict.fromkeys(listed.replace(";", " ").split())
    for arch in archs:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise BuildError(
                f"{_ARCHS_VARIABLE}: {arch!r} is not an architecture like 9.0 or 9.0+PTX"
            )
    return [re.sub("[af]", "", arch) for arch in archs]  # nothing of ours is 9.0a's alone


def compile_library(
    csrc: Path, target: Path, archs: Sequence[str] | None = None, work: Path | None = None
) -> None:
    """Compile every rule for every instruction set, and CUDA code for ``archs``, into ``target``.

    Args:
        work: a folder for the objects, whose later builds compile what has changed.

    Raises:
        BuildError: there is no compiler, no Python header, or a command failed.
    """
    archs = cuda_archs() if archs is None else archs
    rules = native_sources.built_in()
    files = native_sources.generated(rules)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if work is None else work.resolve()
        written = folder / "generated"
        digest = native_sources.digest(csrc, files)
        units = list(native_sources.units([rule.name for _, rule in rules]))
        jobs = _jobs(csrc.resolve(), written, units, archs, digest)
        link = [*_nvcc(), *_NVCC_LINK_FLAGS] if archs else [*_compiler(), *_all_flags(), "-shared"]
        native_sources.write(files, written)
        build(folder, jobs, link, LIBRARY)
        install(folder / LIBRARY, target)


def install(library: Path, target: Path) -> None:
    """Copy a library aside and move it into place: another process never sees half of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=target.parent)
    except OSError as error:
        raise BuildError(
            f"{target.parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    os.close(handle)
    shutil.copy(library, staged)
    os.replace(staged, target)


def _jobs(
    csrc: Path, written: Path, units: Sequence[str], archs: Sequence[str], digest: str
) -> dict[str, Job]:
    """What makes each object file, the slowest first; ``units``: the files with rules."""
    start = [*_compiler(), *_all_flags(), f"-I{csrc}", f"-I{written}", "-c"]
    jobs = {}
    if archs:
        nvcc = [*_nvcc(), *_NVCC_FLAGS, *map(_gencode, archs), f"-I{csrc}", f"-I{written}", "-c"]
        jobs["cuda"] = Job(f"{csrc}/cuda.cu", nvcc)
    for isa in _variants():
        command = [*rule_command(csrc, isa), f"-I{written}", "-c"]
        jobs |= {f"{unit}_{isa}": Job(f"{written}/{unit}.cpp", command) for unit in units}
    defined = [f"-I{_python_headers()}", f'-DFS_DIGEST="{digest}"']
    if archs:
        defined.append(f'-DFS_CUDA="{" ".join(archs)}"')
    return jobs | {name: Job(f"{csrc}/{name}.cpp", [*start, *defined]) for name in _SOURCES}


def rule_command(csrc: Path, isa: str) -> list[str]:
    """What compiles a rule's launch on the CPU for one instruction set."""
    return [*_compiler(), *_all_flags(), *_variants()[isa], f"-I{csrc}", f"-DFS_ISA={isa}"]


def _variants() -> dict[str, tuple[str, ...]]:
    """Flags by instruction set."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return _VARIANTS if x86 else {"baseline": ()}


def _gencode(arch: str) -> str:
    number = re.sub(r"\D", "", arch)
    codes = f"[sm_{number},compute_{number}]" if arch.endswith("+PTX") else f"sm_{number}"
    return f"-gencode=arch=compute_{number},code={codes}"


def _all_flags() -> tuple[str, ...]:
    return *_FLAGS, *os.environ.get(_FLAGS_VARIABLE, "").split()


def _compiler() -> list[str]:
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise BuildError("it needs a C++ compiler and found none (g++, clang++ or CXX)")
    return found.split()


def _nvcc() -> list[str]:
    """nvcc, with the C++ compiler that compiles the rest."""
    home, path = os.environ.get("CUDA_HOME", ""), os.environ.get("PATH", "")
    found = shutil.which("nvcc", path=f"{home}/bin{os.pathsep}{path}")
    wanted = "it needs nvcc of CUDA 12.1 or later for CUDA tensors"  # parameters of over 4 KB
    if not found:
        raise BuildError(f"{wanted} and found none on PATH or in CUDA_HOME")
    told = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", told)
    if release is None or tuple(map(int, release.groups())) < (12, 1):
        raise BuildError(f"{wanted}; {found} is {release[0] if release else 'unknown'}")
    return [found, f"-ccbin={_compiler()[0]}"]


def _python_headers() -> Path:
    folder = Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").exists():
        raise BuildError("it needs the Python headers; Python.h is not installed (python3-dev)")
    return folder
