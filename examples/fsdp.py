"""Trains a masked network with its parameters sharded over processes: fully_shard (FSDP2).

``fully_shard`` takes each masked layer by itself, then the rest. Scores are sharded like weights, and every process has
the masks that one process would have. Prints what each process holds, the accuracy on digits that were not seen, and
that the gathered state_dict loads into an ordinary network; on CPUs:

    torchrun --nproc-per-node 2 examples/fsdp.py
"""

import argparse
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import edgepop_kernels as ek


def network():
    torch.manual_seed(0)  # the same on every process
    body = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    return ek.convert(body, keep=0.1, init="signed_constant", scale="paper")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    dist.init_process_group("gloo")  # on GPUs "nccl", a mesh of "cuda", and a device of its own for each process
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))

    model = network()
    for layer in model:
        if isinstance(layer, ek.FusedSubnetLinear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    here, whole = model[2].scores.to_local().numel(), model[2].scores.numel()
    print(f"process {rank} of {world}: {here:,} of the second layer's {whole:,} scores", flush=True)

    images, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(1437, generator=order).split(64):
            mine = batch[rank::world]
            optimizer.zero_grad()
            F.cross_entropy(model(images[mine]), labels[mine]).backward()  # gradients are averaged over processes
            optimizer.step()

    y = model(images[1437:]).detach()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        print(f"{(y.argmax(1) == labels[1437:]).float().mean():.1%} of 360 unseen images right")
        alone = network()
        alone.load_state_dict(state)
        apart = (alone(images[1437:]) - y).abs().max()
        print(f"loaded into one process: outputs within {apart:.0e}, {ek.summary(alone).kept:,} weights kept")


if __name__ == "__main__":
    main()
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads drop their last tensors a moment later; once Python ends, that aborts the process
