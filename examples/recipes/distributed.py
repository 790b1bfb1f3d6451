"""DDP, FSDP2, ZeroRedundancyOptimizer, distributed checkpoints: two processes on one machine.

    python examples/recipes/distributed.py

Each process trains on half of each batch; the params must equal those of stock torch in one
process. Sharded params are DTensors: the step updates the local shards. FSDP2 and DDP are the
engine where a model outgrows a machine; fused_sched brings no communication of its own.
"""

import gc
import os
import socket
import tempfile
import warnings
from functools import partial

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import fused_sched

PROCESSES, STEPS, SAVED_AT = 2, 6, 3


def make_net():
    """Shards of its tensors are uneven, and one of the last layer's is empty."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))


def batch(step, rank, processes):
    generator = torch.Generator().manual_seed(step)
    parts = (torch.randn(8, n, generator=generator) for n in (8, 1))
    return (part.chunk(processes)[rank] for part in parts)


def train(net, opt, sched, steps, rank=0, processes=1, clip=True):
    for step in steps:
        inputs, targets = batch(step, rank, processes)
        opt.zero_grad()
        torch.nn.functional.mse_loss(net(inputs), targets).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        opt.step()
        sched.step()


def build(net, fuse, optimizer=fused_sched.optim.AdamW):
    opt = optimizer([{"params": [param]} for param in net.parameters()], lr=0.1)
    sched = fused_sched.lr_scheduler.CosineAnnealingLR(opt, T_max=20)
    if fuse:
        fused_sched.fuse(opt, sched)
    return opt, sched


def in_one_process(clip):
    """The params that stock torch trains on whole batches."""
    net = make_net()
    opt = torch.optim.AdamW(net.parameters(), lr=0.1)
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=20)
    train(net, opt, sched, range(STEPS), clip=clip)
    return whole(net)


def ddp():
    return DistributedDataParallel(make_net())


def sharded():
    net = make_net()
    fully_shard(net[0])
    return fully_shard(net)


def mixed():
    """The first layer sharded, the last one plain tensors, whose gradients are averaged.

    torch clips no gradients of both kinds.
    """
    net = make_net()
    fully_shard(net[0])
    for param in net[2].parameters():
        param.register_post_accumulate_grad_hook(average)
    return net


def average(param):
    dist.all_reduce(param.grad)
    param.grad /= PROCESSES


def restored(folder, fuse, rank):
    """Train, save sharded, load into fresh objects, train on."""
    net = sharded()
    opt, sched = build(net, fuse)
    train(net, opt, sched, range(SAVED_AT), rank, PROCESSES)
    model_state, optimizer_state = get_state_dict(net, opt)
    state = {"net": model_state, "opt": optimizer_state, "sched": sched.state_dict()}
    checkpoints.save(state, checkpoint_id=folder)

    net = sharded()
    opt, sched = build(net, fuse)
    model_state, optimizer_state = get_state_dict(net, opt)
    state = {"net": model_state, "opt": optimizer_state, "sched": sched.state_dict()}
    checkpoints.load(state, checkpoint_id=folder)
    set_state_dict(net, opt, model_state_dict=state["net"], optim_state_dict=state["opt"])
    sched.load_state_dict(state["sched"])
    train(net, opt, sched, range(SAVED_AT, STEPS), rank, PROCESSES)
    return net, sched


def whole(net):
    """The params, gathered where they are sharded."""
    params = net.parameters()
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for p in params]


def work(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    compare_all(rank, folder)
    gc.collect()  # the nets: their communicators' threads must not outlive the process group
    dist.destroy_process_group()


def compare_all(rank, folder):
    expected = {clip: in_one_process(clip) for clip in (True, False)}

    def compare(name, net, clip=True):
        torch.testing.assert_close(whole(net), expected[clip], rtol=1e-5, atol=1e-6)
        if rank == 0:
            print(f"{name}: all params as in one process with stock torch", flush=True)

    for fuse in (False, True):
        for make in (ddp, sharded, mixed):
            net = make()
            clip = make is not mixed
            train(net, *build(net, fuse), range(STEPS), rank, PROCESSES, clip)
            compare(f"{make.__name__}, {'fused' if fuse else 'explicit'}", net, clip)
        net, sched = restored(f"{folder}/{fuse}", fuse, rank)
        assert sched.last_epoch == STEPS
        compare(f"restored, {'fused' if fuse else 'explicit'}", net)
    net = ddp()  # its params are shared out: half of each process's groups are empty
    zero = partial(ZeroRedundancyOptimizer, optimizer_class=fused_sched.optim.AdamW)
    train(net, *build(net, False, zero), range(STEPS), rank, PROCESSES)
    compare("ZeroRedundancyOptimizer", net)


def main():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (port, folder), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
