"""``-p tests.gpu.junit --junit-as-it-goes=FILE``: JUnit XML that is whole after every test.

Pytest's own ``--junitxml`` writes at the end of the session, which a run that is killed has not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape, quoteattr

import pytest

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<testsuites>\n<testsuite name="gpu">\n'
END = "</testsuite>\n</testsuites>\n"
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


class Junit:
    """A test case for each test, written when it is over; the file always ends as XML does."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: IO[bytes] = path.open("wb")
        self.parts: dict[str, list[pytest.TestReport]] = {}
        self.end = 0
        self.write(HEAD)

    def write(self, text: str) -> None:
        """Put text where the end was, and the end behind it."""
        self.file.seek(self.end)
        self.file.write(_NOT_IN_XML.sub("?", text).encode())
        self.end = self.file.tell()
        self.file.write(END.encode())
        self.file.flush()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Under xdist the process that started the others hears of every test."""
        self.parts.setdefault(report.nodeid, []).append(report)
        if report.when == "teardown":
            self.write(case(report.nodeid, self.parts.pop(report.nodeid)))

    def pytest_sessionfinish(self) -> None:
        """A test whose process broke off has no teardown."""
        for nodeid, parts in self.parts.items():
            self.write(case(nodeid, parts))
        self.file.close()


def case(nodeid: str, parts: list[pytest.TestReport]) -> str:
    """One test case of its set-up, its call and its teardown."""
    file, _, name = nodeid.partition("::")
    seconds = sum(part.duration for part in parts)
    head = f"<testcase classname={quoteattr(file)} name={quoteattr(name)} time='{seconds:.3f}'>"
    return "".join([head, *map(outcome, parts), "</testcase>\n"])


def outcome(part: pytest.TestReport) -> str:
    """What a part adds: nothing where it passed."""
    if part.passed:
        return properties(part) if part.when == "call" else ""
    tag = "skipped" if part.skipped else "failure" if part.when == "call" else "error"
    return f"<{tag}>{escape(part.longreprtext)}</{tag}>"


def properties(part: pytest.TestReport) -> str:
    """What the test has recorded."""
    pairs = [(quoteattr(name), quoteattr(str(value))) for name, value in part.user_properties]
    inner = "".join(f"<property name={name} value={value}/>" for name, value in pairs)
    return f"<properties>{inner}</properties>" if pairs else ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--junit-as-it-goes", type=Path, metavar="FILE")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--junit-as-it-goes")
    if path is not None and not hasattr(config, "workerinput"):  # not in one of xdist's workers
        config.pluginmanager.register(Junit(path), "junit-as-it-goes")
