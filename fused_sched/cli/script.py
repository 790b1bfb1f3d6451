"""A script or a module, run as Python itself runs it."""

from __future__ import annotations

import importlib.machinery
import io
import os
import runpy
import sys
import zipfile
from collections.abc import Sequence
from types import ModuleType, TracebackType


def execute(target: str, arguments: Sequence[str], module: bool) -> int:
    """Run a script (or a folder or archive with a ``__main__.py``, or ``-m target``) to its end.

    ``sys.argv``, ``sys.path[0]`` and ``__main__`` are what they are under ``python target``, and
    stay so: what the script leaves for the end of the process still finds them.

    Returns:
        Its exit status: 0, or 1 after an error, whose traceback has been shown as Python would.

    Raises:
        SystemExit, KeyboardInterrupt: as the script does.
        OSError: there is no such script.
    """
    code = None if module or _is_package(target) else _read(target)
    sys.argv = [target, *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    vars(main)["__builtins__"] = sys.modules["builtins"]
    try:
        if code is not None:
            _put_first_on_path(os.path.dirname(os.path.realpath(target)))
            _run_file(main, target, code)
        else:
            if not module:
                _put_first_on_path(target)
            runpy._run_module_as_main(target if module else "__main__", module)  # type: ignore[attr-defined]
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        error.__traceback__ = _of_the_script(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _is_package(target: str) -> bool:
    return os.path.isdir(target) or zipfile.is_zipfile(target)


def _read(path: str) -> bytes:
    with io.open_code(os.path.abspath(path)) as file:
        return file.read()


def _put_first_on_path(folder: str) -> None:
    """In the place of the folder from which ``python -m fused_sched`` was started."""
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):  # safe_path: Python 3.11
        sys.path[0] = folder


def _run_file(main: ModuleType, target: str, code: bytes) -> None:
    path = os.path.abspath(target)
    main.__file__ = path
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
    main.__dict__["__cached__"] = None
    exec(compile(code, path, "exec"), vars(main))


def _of_the_script(traceback: TracebackType | None) -> TracebackType | None:
    """Without our own frames and those of runpy."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    while traceback is not None and traceback.tb_frame.f_code.co_filename in ours:
        traceback = traceback.tb_next
    return traceback
