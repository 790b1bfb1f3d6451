"""Who asks for the account of cached launches: every reader gets what stock torch would say."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

import fused_sched
from fused_sched.engines import native_build
from tests.cases import PROMISE
from tests.test_cached import Both

STOCK = torch.optim, torch.optim.lr_scheduler
OURS = fused_sched.optim, fused_sched.lr_scheduler


@pytest.fixture(autouse=True)
def _native():
    with fused_sched.use_engine("native"):
        yield


# -- readers of the schedule ---------------------------------------------------------------------


def test_fusing_a_stock_plateau_loses_no_advance():
    """Converting it enrolls a second scheduler while the first one's advances are owed."""
    both = Both(fused=False)
    assert both.ours.scheduler.__dict__["_cached"] is not None
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(both.ours.opt)
    both.step(3)
    fused_sched.fuse(both.ours.opt, plateau, interval=1)
    both.step(3)
    both.check()


def own_record(base: Any) -> Any:
    """A user's scheduler that writes its own checkpoint, from ``__dict__``."""

    class Recorded(base):
        def state_dict(self):
            return {key: self.__dict__[key] for key in ("last_epoch", "_step_count", "_last_lr")}

    return Recorded


def test_a_subclass_with_its_own_state_dict_is_caught_up():
    records = []
    for optim, schedulers in (STOCK, OURS):
        opt = optim.SGD([Parameter(torch.ones(2))], lr=0.1)
        scheduler = own_record(schedulers.ExponentialLR)(opt, 0.9)
        for _ in range(5):
            opt.param_groups[0]["params"][0].grad = torch.ones(2)
            opt.step()
            scheduler.step()
        records.append(scheduler.state_dict())
    stock, ours = records
    assert ours["last_epoch"] == stock["last_epoch"] == 5
    assert ours["_step_count"] == stock["_step_count"]
    assert ours["_last_lr"] == pytest.approx(stock["_last_lr"], rel=PROMISE)


# -- readers of the state ------------------------------------------------------------------------


def test_no_step_is_lost_to_a_reading_thread():
    """A launch that leaves the GIL counts itself before a reader takes the account."""
    param = Parameter(torch.zeros(500_000))
    param.grad = torch.ones_like(param)
    opt = fused_sched.optim.AdamW([param], lr=1e-3)
    opt.step()
    steps, done = 60, threading.Event()

    def train() -> None:
        for _ in range(steps):
            opt.step()
        done.set()

    thread = threading.Thread(target=train)
    thread.start()
    seen = []
    while not done.is_set():
        seen.append(float(opt.state_dict()["state"][0]["step"]))
    thread.join()
    assert seen == sorted(seen)
    assert float(opt.state[param]["step"]) == 1 + steps
    opt.step()
    assert float(opt.state[param]["step"]) == 2 + steps


def test_gradients_may_change_their_dtype_between_cached_launches():
    wide, narrow = [torch.float32] * 4, [torch.bfloat16] * 4
    runs, launches = [], []
    for dtypes in (wide * 3, wide + narrow + wide):
        param = Parameter(torch.ones(40).bfloat16())
        param.grad_dtype = None
        opt = fused_sched.optim.AdamW([param], lr=1e-2)
        for dtype in dtypes:
            param.grad = torch.full((40,), 0.5, dtype=dtype)  # the same value in both
            opt.step()
            launches.append(opt._cached)  # held, so that none takes another's address
        runs.append(param)
    phases = [{id(cached) for cached in launches[i : i + 4]} - {id(None)} for i in (12, 16, 20)]
    assert not phases[0] & phases[1] and not phases[1] & phases[2]
    assert phases[1], "no cached launch was made"
    assert torch.equal(runs[0], runs[1])


# -- the library's build -------------------------------------------------------------------------


def test_without_a_home_the_build_says_so(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(native_build.Path, "home", _no_home)
    folder = native_build.sources()
    assert folder is not None
    with pytest.raises(native_build.BuildError, match="no folder to build into: Could not"):
        native_build.cached(folder)


def _no_home() -> Any:
    raise RuntimeError("Could not determine home directory.")


def test_an_installed_library_of_other_sources_than_its_checkouts_is_stale(tmp_path, monkeypatch):
    checkout = tmp_path / "csrc"
    checkout.mkdir()
    (checkout / "cpu.cpp").write_text("// one")
    library = tmp_path / "site" / "fused_sched" / "engines" / native_build.LIBRARY
    library.parent.mkdir(parents=True)
    library.write_bytes(b"code " + native_build._digest(checkout).encode() + b" code")
    monkeypatch.setattr(native_build, "built", lambda: library)
    monkeypatch.delenv("FUSED_SCHED_CXXFLAGS", raising=False)
    assert not native_build._is_stale(checkout)
    (checkout / "cpu.cpp").write_text("// another")
    assert native_build._is_stale(checkout)
    (checkout / "cpu.cpp").write_text("// one")
    assert not native_build._is_stale(checkout)
    monkeypatch.setenv("FUSED_SCHED_CXXFLAGS", "-O1")
    assert native_build._is_stale(checkout)


def test_two_builds_at_once_leave_one_whole_library(tmp_path, monkeypatch):
    """Each links under a name of its own and moves it into place."""
    names = []
    replace = os.replace

    def note(staged: Any, target: Any) -> None:
        names.append(staged)
        replace(staged, target)

    def write(folder: Path, jobs: Any, link: Any, name: str) -> None:
        (folder / name).touch()

    monkeypatch.setattr(native_build.os, "replace", note)
    monkeypatch.setattr(native_build, "build", write)
    csrc = native_build.sources()
    target = tmp_path / "cache" / native_build.LIBRARY
    threads = [
        threading.Thread(target=native_build.compile_library, args=(csrc, target, []))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2
    assert list(target.parent.iterdir()) == [target]
