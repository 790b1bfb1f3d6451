"""Cached launches of a Triton kernel: what they hand to CUDA's driver, and its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from triton import knobs

import fused_sched
from fused_sched.engines import triton_cached
from tests.cuda_on_host import stand_in
from tests.cuda_on_host.stand_in import launched
from tests.test_cached import Both, Run

pytestmark = pytest.mark.parametrize("streams", ["triton"], indirect=True)

ROOT = Path(__file__).resolve().parents[2]


def copies() -> int:
    return stand_in.device().cuda_on_host_copies()


def test_addresses_are_copied_where_gradients_moved_and_only_there():
    both = Both()
    assert both.cached.step(both.ours.opt)  # the first one fills its table
    before = copies()
    for moved in (0, 0, 1, 0, 1):
        if moved:
            both.ours.params[1].grad = both.ours.params[1].grad.clone()
        assert both.cached.step(both.ours.opt)
        before += moved
        assert copies() == before


def test_cached_and_full_steps_know_their_own_tables():
    """A full step after a cached one with other gradients, which then lie where they lay before."""
    both = Both()
    here = [[torch.randn_like(p) for p in run.params] for run in (both.ours, both.stock)]
    for theirs, ours in zip(here[1], here[0], strict=True):
        theirs.copy_(ours)
    for step in range(6):
        for run, grads in zip((both.ours, both.stock), here, strict=True):
            if step % 3 == 1:
                run.backward()
            else:
                for param, grad in zip(run.params, grads, strict=True):
                    param.grad = grad
        if step % 3 == 2:
            both.ours.opt._ledger.mirror.account.drop_cached()
        both.ours.opt.step()
        both.stock.opt.step()
        both.stock.scheduler.step()
    both.check()


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_it_declines_while_somebody_listens_to_launches(hook, monkeypatch):
    both = Both()
    both.do(Run.backward)
    opt, cached, chain = both.ours.opt, both.cached, getattr(knobs.runtime, hook)
    heard = print
    chain.add(heard)
    try:
        assert launched(lambda: cached.step(opt)) == 0
    finally:
        chain.remove(heard)
    assert cached.step(opt)
    with monkeypatch.context() as patch:
        patch.setattr(knobs.runtime, hook, heard)
        assert not cached.step(opt)
        assert triton_cached._hooks() is None
    assert cached.step(opt)


def test_it_declines_on_another_device_than_the_threads(streams):
    both = Both()
    both.do(Run.backward)
    stand_in.device().cuda_on_host_device(1)
    assert not both.cached.step(both.ours.opt)
    stand_in.device().cuda_on_host_device(0)
    assert both.cached.step(both.ours.opt)


def test_launch_that_failed_is_the_whole_steps():
    both = Both()
    both.do(Run.backward)
    both.ours.opt._ledger.mirror.account.settle()
    stand_in.device().cuda_on_host_fail(700)
    assert not both.cached.step(both.ours.opt)
    stand_in.device().cuda_on_host_fail(0)
    assert both.cached.take() == (0, {})
    both.ours.opt.step()
    both.stock.opt.step()
    both.stock.scheduler.step()
    both.check()


def test_more_gradients_than_a_copy_takes_along_take_whole_steps(monkeypatch):
    monkeypatch.setattr(triton_cached, "_MOST_GRADIENTS", 2)
    params = [Parameter(torch.ones(1)) for _ in range(3)]
    opt = fused_sched.optim.SGD(params, lr=0.5)
    for param in params:
        param.grad = torch.ones(1)
    for _ in range(3):
        opt.step()
    assert opt._cached is None
    assert set(torch.cat(params).tolist()) == {-0.5}


@pytest.mark.parametrize(
    "odd", [{"num_ctas": 2}, {"launch_pdl": True}, {"global_scratch_size": 128}], ids=str
)
def test_kernel_with_more_than_blocks_is_for_tritons_launcher(odd):
    plain = {"num_ctas": 1, "launch_pdl": False, "global_scratch_size": 0}
    assert triton_cached._is_plain(SimpleNamespace(**plain))
    assert not triton_cached._is_plain(SimpleNamespace(**{**plain, **odd}))


def test_fields_of_another_size_are_refused():
    make: Any = stand_in.module().TritonStep
    rest = ([], (), b"", {}, {}, {}, 0, None, None)
    with pytest.raises(ValueError, match="fields of another size"):
        make(b"", {}, (1, 0), *rest, (None,) * 5)
    with pytest.raises(TypeError, match="hooks"):
        make(b"", {}, (1, 0), *rest)


def test_library_without_a_driver_is_told_what_is_missing():
    find = stand_in.module().find_driver
    assert "cannot be loaded" in find("no such library")
    assert "lacks a function" in find("libc.so.6")
    assert find(str(stand_in.library())) is None


COMPILED = """
import re, torch
import fused_sched
from fused_sched.engines import triton_engine, triton_cached
from tests import triton_on_host

launched = []
triton_on_host.serve(launched)
weight = torch.nn.Parameter(torch.ones(5))
weight.grad = torch.ones(5)
with fused_sched.use_engine("triton"):
    opt = fused_sched.optim.AdamW([weight], lr=0.1)
    opt.step()
(device_state,) = opt._ledger.mirror.host.device_states.values()
buffer, table = device_state.buffer, device_state.table
_, key, args, _ = triton_engine._update_job(buffer, table, None, opt._rule, 2, None, None)
handle = triton_engine._compiled[key]
ours = triton_cached._parameters(handle, args)
declared = re.findall(r"\\.param (\\S+) .*update_kernel_param_", handle.asm["ptx"])
assert [kind for kind in declared[: len(ours)]] == [
    ".u64" if name.endswith("_ptr") else ".u32" for name, _ in ours
], (declared, ours)
assert declared[len(ours) :] == [".u64", ".u64"], declared
assert triton_cached._is_plain(handle.metadata), handle.metadata
assert triton_cached._hooks() is not None
name, *grid_stream, function, packed, _, enter, exit = launched[0][:10]
assert (function, packed[0] * 32) == (handle.function, handle.metadata.num_warps * 32)
assert packed[2] == handle.metadata.shared
passed = [a for a, k in zip(launched[0][10:], handle.src.signature.values()) if k != "constexpr"]
found = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in passed]
assert found == [value for _, value in ours], (found, ours)
"""


def test_parameters_are_those_of_the_compiled_kernel(tmp_path):
    """Their number, order and kinds by PTX, their values by what Triton's launcher gets."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
