"""``tests/upstream.py`` runs somebody's tests on both sides and says what ends otherwise."""

from __future__ import annotations

import pytest

from tests import upstream

TESTS = """
import unittest

import torch


class TestNames(unittest.TestCase):
    def test_both_pass(self):
        self.assertTrue(issubclass(torch.optim.AdamW, torch.optim.Adam))

    def test_both_fail(self):
        self.fail("always")

    def test_ours_fails(self):
        self.assertEqual(torch.optim.SGD.__module__, "torch.optim.sgd")

    def test_skipped(self):
        self.skipTest("today")
"""


def test_tests_that_end_otherwise_are_named(tmp_path, capfd):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_optim.py").write_text(TESTS, encoding="utf-8")
    assert upstream.main([str(tmp_path)]) == 1
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == "stock torch: 1 failure, 2 passed, 1 skipped"
    assert printed[1] == "fused_sched: 2 failure, 1 passed, 1 skipped"
    assert printed[2].startswith(
        "test_optim.TestNames.test_ours_fails: passed with stock torch, failure with fused_sched: "
        "AssertionError: 'fused_sched.optim.sgd' != 'torch.optim.sgd'"
    )
    assert len(printed) == 3


def test_a_folder_without_the_tests_is_an_error(tmp_path):
    (tmp_path / "test").mkdir()
    with pytest.raises(RuntimeError, match="pytest ran no tests"):
        upstream.outcomes(tmp_path / "test", [], swapped=False)
