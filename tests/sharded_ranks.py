"""What test_torch_distributed has two processes do together: ``torchrun ... sharded_ranks.py FOLDER``.

What each rank saw lands in FOLDER/rank0.pt and rank1.pt.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import edgepop_kernels as ek

HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(trained(model), lr=0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(trained(model), lr=0.01),
    "ScoreSGD": lambda model: ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9),
}
RULES = {"TopK": ek.TopK(0.3), "GlobalTopK": ek.GlobalTopK(0.3, at_least=0.1), "Bernoulli": ek.Bernoulli()}


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def network(rule):
    """Odd sizes, which two processes cannot halve."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(13, 33), nn.LayerNorm(33), nn.ReLU(), nn.Linear(33, 5))
    return ek.convert(body, rule)


def sharded(model, mesh, policy=None):
    """fully_shard on masked layers and root; a policy goes to all but masked layers."""
    for layer in model:
        if hasattr(layer, "scores"):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh, **({} if policy is None else {"mp_policy": policy}))


def train(model, optimizer, x, steps=3):
    torch.manual_seed(1)
    optimizer = OPTIMIZERS[optimizer](model)
    for _ in range(steps):
        with torch.no_grad():
            model.eval()(x)  # which learns a cut
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x).float(), torch.arange(len(x)) % 5).backward()
        optimizer.step()
    return model


def whole(model):
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in model.named_parameters()}


def seen(model, x):
    masks = {name: m.mask() for name, m in model.named_modules() if hasattr(m, "scores")}
    return {"parameters": whole(model), "masks": masks, "y": model.eval()(x).detach()}


def refused(action):
    try:
        action()
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return "nothing was wrong"


def main(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2,))
    x = torch.randn(10, 13, generator=torch.Generator().manual_seed(3))  # the same on both: gradients are those of one
    saw = {}
    for rule, shared in [("TopK", None), ("Bernoulli", None)] + [
        (r, s) for r in ("TopK", "GlobalTopK") for s in (0, 1)
    ]:
        for optimizer in OPTIMIZERS if shared is None else ["SGD"]:
            for shard in (True, False):
                model = network(RULES[rule])
                if shared == 0:
                    ek.share_selection(model)
                model = sharded(model, mesh) if shard else model
                if shared == 1:
                    ek.share_selection(model)
                saw[rule, shared, optimizer, shard] = seen(train(model, optimizer, x), x)

    for shard in (True, False):
        model = network(RULES["TopK"])
        with torch.autocast("cpu", enabled=not shard):  # bfloat16 products of float32 parameters
            saw["half", shard] = seen(train(sharded(model, mesh, HALF) if shard else model, "SGD", x), x)
    model = fully_shard(network(RULES["TopK"]), mesh=mesh, mp_policy=HALF)
    saw["half scores"] = refused(lambda: model(x))

    model = train(sharded(network(RULES["TopK"]), mesh), "SGD", x)
    everything = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(model, options=everything)
    alone = network(ek.TopK(0.5))
    alone.load_state_dict(state)
    again = sharded(network(ek.TopK(0.5)), mesh)
    set_model_state_dict(again, state, options=everything)
    saw["state"] = [seen(m, x) for m in (model, again, alone)]
    saw["sharded"] = [refused(lambda: ek.train_weights(model)), refused(model[0].freeze), seen(model, x)]

    wrapped = DistributedDataParallel(network(RULES["TopK"]))
    wrapped(x).sum().backward()
    inner = wrapped.module
    actions = [
        lambda: ek.train_weights(wrapped),
        lambda: ek.train_masks(inner),
        inner[0].freeze,
        inner[3].thaw,
        lambda: inner[0].train_weight(inner[0].mask()),
        lambda: inner[0].train_mask(),
    ]
    saw["wrapped"] = [refused(action) for action in actions]
    saw["still"] = (inner[0].rule, [p.requires_grad for p in inner.parameters()])
    saw["another"] = refused(lambda: ek.train_weights(network(RULES["TopK"])))  # which nobody has wrapped
    del wrapped
    saw["taken out"] = refused(lambda: ek.train_weights(inner))
    wrapped = DistributedDataParallel(inner)
    half = x[5 * dist.get_rank() :][:5]
    saw["weights"] = seen(train(wrapped, "SGD", half).module, x)
    alone = ek.train_weights(network(RULES["TopK"]))
    saw["weights alone"] = seen(train(alone, "SGD", x), x)
    torch.save(saw, folder / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main(Path(sys.argv[1]))
    dist.destroy_process_group()
    time.sleep(0.5)  # as examples/fsdp.py does, and for the same reason
