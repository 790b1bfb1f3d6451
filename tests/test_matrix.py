"""`make matrix`: its rows, what it makes of a run, and the page it writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.matrix import __main__ as command
from tests.matrix.environments import ROOT, Unavailable, find_python
from tests.matrix.page import HEADER, Result, page
from tests.matrix.rows import LONG, QUICK, ROWS, Row, chosen
from tests.matrix.suite import Broken, read_junit

JUNIT = """
<testsuites><testsuite tests="5" skipped="1" failures="1" errors="1">
<testcase classname="tests.test_a" name="passes"/><testcase classname="tests.test_a" name="too"/>
<testcase classname="tests.test_a" name="skips"><skipped/></testcase>
<testcase classname="tests.test_b" name="fails"><failure/></testcase>
<testcase classname="tests.test_b" name="breaks"><error/></testcase>
</testsuite></testsuites>
"""

COUNTS = {"passed": 1234, "skipped": 5, "failed": 1}
PASSED, ABSENT = ROWS[0].name, ROWS[1].name
RESULTS = {
    PASSED: Result(
        PASSED,
        "2026-01-02",
        "abc1234",
        "quick",
        {"torch": "2.11.0+cpu"},
        "3.13.0",
        COUNTS,
        ["a: b"],
    ),
    ABSENT: Result(ABSENT, "2026-01-02", "abc1234", note="no Python 3.12 on this machine"),
}


def line_of(text: str, row: Row) -> str:
    return text.splitlines()[
        text.splitlines().index(f"|{'---|' * len(HEADER)}") + 1 + ROWS.index(row)
    ]


def test_rows_are_exact_and_differ():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert re.fullmatch(r"3\.\d+", row.python)
        for number in (row.torch, row.triton, row.numpy):
            assert re.fullmatch(r"\d+\.\d+\.\d+", number)


def test_every_version_has_a_row():
    assert {row.python for row in ROWS} >= {"3.10", "3.11", "3.12", "3.13"}
    assert {row.torch for row in ROWS} >= {"2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0"}
    assert {row.triton[:3] for row in ROWS} >= {"3.6", "3.7", "3.8", "3.9"}


def test_the_quick_form_is_there():
    assert [name for name in QUICK if not (ROOT / name).is_file()] == []
    file, _, name = LONG.partition("::")
    assert file in QUICK and f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_words_choose_rows():
    assert chosen([]) == list(ROWS)
    assert {row.torch for row in chosen(["torch2.15", "torch2.12"])} == {"2.15.0", "2.12.1"}
    with pytest.raises(SystemExit, match=r"no row's name holds 'torch1'; the rows:\n  python3.10-"):
        chosen(["torch1"])


def test_a_report_is_counted(tmp_path):
    report = tmp_path / "junit.xml"
    report.write_text(JUNIT)
    counts, failed = read_junit(report)
    assert counts == {"passed": 2, "skipped": 1, "failed": 2}
    assert failed == ["test_b: fails", "test_b: breaks"]


def test_page_tells_what_passed_and_what_could_not_be_had():
    text = page(RESULTS)
    first, second, third = (line_of(text, row) for row in ROWS[:3])
    assert first.startswith("| 3.10 | 2.11.0+cpu | 3.6.0 | 2.2.6 | quick | 1,234 | 5 | 1 |")
    assert "no Python 3.12 on this machine; 2026-01-02, abc1234" in second
    assert "not run" in third
    assert f"* {PASSED}: `a: b`" in text and "by Python 3.13.0 without" in text


def test_committed_page_is_of_these_rows():
    text = command.PAGE.read_text(encoding="utf-8")
    for row in ROWS:
        cells = [cell.strip() for cell in line_of(text, row).strip("|").split("|")]
        python, torch, triton = cells[:3]
        assert (python + ".").startswith(row.python + ".")
        assert torch.startswith(row.torch) and triton == row.triton


def test_a_python_that_is_not_here_is_said_to():
    assert find_python("{}.{}".format(*sys.version_info)) == Path(sys.executable)
    with pytest.raises(Unavailable, match=r"no Python 3\.99 on this machine"):
        find_python("3.99")


@pytest.mark.parametrize(
    ("error", "status"), [(Unavailable("not here"), 0), (Broken("no step"), 1)]
)
def test_only_what_is_here_can_fail(error, status, tmp_path, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(command, "PAGE", tmp_path / "versions.md")
    monkeypatch.setattr(command, "build_wheel", lambda folder: (tmp_path, "3.13.0"))
    monkeypatch.setattr(command, "try_row", fails)
    assert command.main(["--folder", str(tmp_path), "--only", PASSED]) == status
    assert f"{error}; 20" in line_of((tmp_path / "versions.md").read_text(), ROWS[0])
