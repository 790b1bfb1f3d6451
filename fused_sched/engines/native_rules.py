"""A rule's compiled code: in the library, or of a rule of the user's own compiled at first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import sys
import tempfile
from pathlib import Path

from fused_sched.rules.rule import Rule

from . import native_build, native_sources, ninja
from .native_library import load as load_library

_EXPORT = 'extern "C" __attribute__((visibility("default"))) void fused_sched_update'


@functools.cache
def cpu_rule(rule: Rule) -> int | str:
    """The address of a rule's Update (csrc/cpu.h), or the reason why there is none."""
    library = load_library()
    if isinstance(library, str):
        return library
    if rule.is_built_in:
        return library.rules()[rule.name]
    try:
        return _loaded(rule, library.isa())
    except (OSError, ninja.BuildError) as error:
        why = f"{rule.name} could not be compiled: {error}"
        print(f"fused_sched: {why}; it runs on torch tensors, slowly", file=sys.stderr)
        return why


def cuda_rule(rule: Rule) -> int | str:
    """The number of a rule in cuda.cu, or the reason why it has none."""
    if not rule.is_built_in:
        return f"it has no CUDA code for {rule.name}, a rule of your own; the Triton engine has"
    numbered = native_sources.cuda_rules()
    if rule.name not in numbered:
        return f"it has no CUDA code for {rule.name}; the Triton engine has"
    return numbered.index(rule.name)


def _loaded(rule: Rule, isa: str) -> int:
    """Compile a rule for the present instruction set, once, and load it."""
    csrc = native_build.sources()
    if csrc is None:
        raise ninja.BuildError("the C++ sources are not installed; install fused_sched again")
    source = rule.source
    assert source is not None, "the package's own rules are in the library"
    files = native_sources.shared() | {
        f"{rule.name}.h": native_sources.header("a class of your own", source),
        f"{rule.name}.cpp": native_sources.launch("a class of your own", source, _EXPORT),
    }
    compile_ = [*native_build.rule_command(csrc, isa), "-shared"]
    made = f"{native_sources.digest(csrc, files)} {' '.join(compile_)}"
    name = f"{rule.name}-{hashlib.sha256(made.encode()).hexdigest()[:16]}.so"
    target = native_build.cache_folder() / "rules" / name
    if not target.exists():
        print(f"fused_sched: compiling {rule.name}, once (a few seconds)", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            native_sources.write(files, Path(scratch))
            built = f"{scratch}/{name}"
            ninja.run([*compile_, f"-I{scratch}", f"{scratch}/{rule.name}.cpp", "-o", built])
            native_build.install(Path(built), target)
    try:
        function = ctypes.CDLL(str(target)).fused_sched_update
    except (OSError, AttributeError) as error:
        raise ninja.BuildError(f"{target} is broken ({error}); delete it") from error
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
