"""Torch's own tests of optimizers, schedulers and SWA, with torch's names meaning our classes.

    python tests/upstream.py PATH_TO_PYTORCH_CHECKOUT [options of pytest, such as -k CyclicLR]

Runs the checkout's ``test/test_optim.py``, which takes in ``test/optim/``, twice on the torch that
is installed: as it is, and under ``python -m fused_sched run``. Prints every test that ends
otherwise; exit status 1 if there is one. Take the checkout at the tag of the installed torch: what
fails because the two do not go together fails on both sides. Needs ``pytest`` and ``expecttest``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
ENDS = ("error", "failure", "skipped")
"""What pytest's XML has inside a test that did not pass."""

Outcomes = dict[str, tuple[str, str]]
"""Test -> (how it ended, its message)."""


def outcomes(tests: Path, options: Sequence[str], swapped: bool) -> Outcomes:
    """Run ``tests/test_optim.py``.

    Raises:
        RuntimeError: nothing was run.
    """
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "outcomes.xml"
        command = [sys.executable, *(["-m", "fused_sched", "run"] if swapped else []), "-m"]
        # Without the checkout's configuration, which asks for plugins of its own.
        command += ["pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts="]
        command += ["--tb=no", f"--junitxml={xml}", "test_optim.py", *options]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(command, cwd=tests, env=env, capture_output=True, text=True)
        cases = read(xml.read_text(encoding="utf-8")) if xml.exists() else {}
    if done.returncode > 1 or not cases:  # 1: tests failed
        raise RuntimeError(f"pytest ran no tests:\n{done.stdout}{done.stderr}")
    return cases


def read(xml: str) -> Outcomes:
    """The outcomes in pytest's XML."""
    found = {}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        end = next((part for part in case if part.tag in ENDS), None)
        message = "" if end is None else end.get("message", "").partition("\n")[0]
        name = f"{case.get('classname')}.{case.get('name')}"
        found[name] = ("passed" if end is None else end.tag, message)
    return found


def differences(stock: Outcomes, ours: Outcomes) -> list[str]:
    """A line for each test that ends otherwise."""
    missing = ("not run", "")
    return [
        f"{test}: {stock.get(test, missing)[0]} with stock torch, "
        f"{ours.get(test, missing)[0]} with fused_sched: {ours.get(test, missing)[1]}"
        for test in sorted({*stock, *ours})
        if stock.get(test, missing)[0] != ours.get(test, missing)[0]
    ]


def main(argv: Sequence[str]) -> int:
    """Compare and print; 1 where something differs."""
    if not argv or argv[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    tests = Path(argv[0]).resolve() / "test"
    sides = {
        "stock torch": outcomes(tests, argv[1:], swapped=False),
        "fused_sched": outcomes(tests, argv[1:], swapped=True),
    }
    for side, found in sides.items():
        counts = Counter(end for end, _ in found.values())
        print(f"{side}: {', '.join(f'{count} {end}' for end, count in sorted(counts.items()))}")
    lines = differences(*sides.values())
    print("\n".join(lines) if lines else "no test ends otherwise")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
