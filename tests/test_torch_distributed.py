"""Masked networks under fully_shard, DistributedDataParallel, nn.DataParallel: the masks of one process, or a word."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sharded_ranks import OPTIMIZERS, RULES, network
from torch import nn

import edgepop_kernels as ek


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each of two processes saw that did together what sharded_ranks.py says."""
    folder = tmp_path_factory.mktemp("sharded")
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "OMP_NUM_THREADS": "1"}
    command += [str(tests / "sharded_ranks.py"), str(folder)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
        try:
            _, errors = torchrun.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            torchrun.terminate()  # which ends the two; killed, it would leave them behind
            raise
    assert torchrun.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def assert_alike(one, other, rtol=1e-5, atol=1e-6):
    for name, mask in one["masks"].items():
        assert torch.equal(mask, other["masks"][name]), name
    torch.testing.assert_close(one["parameters"], other["parameters"], rtol=rtol, atol=atol)
    torch.testing.assert_close(one["y"], other["y"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", ["TopK", "Bernoulli"])
def test_a_sharded_network_trains_as_one_process_does(seen, rule, optimizer):
    for rank in seen:
        sharded, alone = (rank[rule, None, optimizer, shard] for shard in (True, False))
        if rule == "Bernoulli":  # its masks are drawn anew
            torch.testing.assert_close(sharded["parameters"], alone["parameters"], rtol=1e-5, atol=1e-6)
        else:
            assert_alike(sharded, alone)


@pytest.mark.parametrize("when", [0, 1], ids=["shared, then sharded", "sharded, then shared"])
@pytest.mark.parametrize("rule", ["TopK", "GlobalTopK"])
def test_a_shared_selection_is_right_where_scores_are_sharded(seen, rule, when):
    for rank in seen:
        assert_alike(*(rank[rule, when, "SGD", shard] for shard in (True, False)))


def test_half_precision_leaves_masked_layers_their_float32_scores(seen):
    for rank in seen:
        sharded, alone = rank["half", True], rank["half", False]
        start = dict(network(RULES["TopK"]).named_parameters())
        for name in ("0.scores", "3.scores"):
            moved, expected = (case["parameters"][name] - start[name] for case in (sharded, alone))
            # bfloat16 has 8 bits, and rounds weight, x and their sums in different places on the two ways
            assert (moved - expected).abs().max() < 0.05 * expected.abs().max()
            assert sharded["parameters"][name].dtype == torch.float32
        assert rank["half scores"].startswith(
            "scores: scores are float32 on every path, got torch.bfloat16; where fully"
        )


def test_a_sharded_network_is_saved_and_loaded(seen):
    for rank in seen:
        sharded, again, alone = rank["state"]
        assert_alike(sharded, again, rtol=0, atol=0)
        assert_alike(sharded, alone, rtol=0, atol=0)


def test_what_trains_in_a_sharded_network_is_not_changed(seen):
    for rank in seen:
        weights, freeze, after = rank["sharded"]
        assert weights.startswith("train_weights: the model is sharded by fully_shard")
        assert freeze.startswith("freeze: the model is sharded by fully_shard")
        assert_alike(after, rank["state"][0], rtol=0, atol=0)


def test_what_trains_inside_distributed_data_parallel_is_not_changed(seen):
    names = ["train_weights", "train_masks", "freeze", "thaw", "train_weight", "train_mask"]
    for rank in seen:
        for name, message in zip(names, rank["wrapped"], strict=True):
            assert message.startswith(f"{name}: the model is inside DistributedDataParallel")
            assert "take it out (model = ddp.module; del ddp)" in message
        rule, trains = rank["still"]
        expected = network(RULES["TopK"])
        assert rule == RULES["TopK"] and trains == [p.requires_grad for p in expected.parameters()]
        assert rank["another"] == "nothing was wrong"


def test_a_model_taken_out_of_distributed_data_parallel_trains_its_weights_in_a_new_one(seen):
    for rank in seen:
        assert rank["taken out"] == "nothing was wrong"
        assert_alike(rank["weights"], rank["weights alone"])


def replicas(model, count=2):
    """What nn.DataParallel makes of a network, on the CPU: parameters are copies in the graph."""
    for _ in range(count):
        copies = {m: m._replicate_for_data_parallel() for m in model.modules()}
        for module, replica in copies.items():
            for name, child in module._modules.items():
                replica._modules[name] = copies[child]
            for name, p in module._parameters.items():
                if p is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, p.clone())
            replica._buffers = dict(module._buffers)
        yield copies[model]


def in_parallel(model, x):
    return torch.cat([replica(part) for replica, part in zip(replicas(model), x.chunk(2), strict=True)])


@pytest.mark.parametrize("shared", [False, True], ids=["per layer", "shared selection"])
@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Threshold(0.0, of="raw")], ids=str)
def test_replicas_of_data_parallel_train_the_network(rule, shared):
    def trained(forward):
        model = network(rule)
        if shared:
            ek.share_selection(model)
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(forward(model, x), torch.arange(10) % 5).backward()
            optimizer.step()
        return dict(model.named_parameters())

    x = torch.randn(10, 13)
    alone = trained(lambda model, x: model(x))
    torch.testing.assert_close(trained(in_parallel), alone, rtol=1e-5, atol=1e-6)


def test_a_replica_starts_from_no_cut_of_another_device():
    model, x = network(ek.TopK(0.3)), torch.randn(4, 13)
    y = model(x)
    elsewhere = ek.select(model[0].scores, model[0].rule)
    model[0]._cuts.learn(ek.Cut(elsewhere.data.to("meta"), elsewhere.of), model[0].scores, model[0].rule)
    for replica in replicas(model):
        assert torch.equal(replica(x), y)
        assert replica[0]._cuts is not model[0]._cuts


def test_replicas_refuse_by_name_what_they_cannot_do():
    model = ek.share_selection(network(ek.GlobalTopK(0.3)))
    with pytest.raises(RuntimeError, match=r"a replica of a layer under GlobalTopK .*DistributedDataParallel"):
        in_parallel(model, torch.randn(4, 13))
    model = network(ek.TopK(0.3))
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, fused_backward=True)
    with pytest.raises(RuntimeError, match=r"fused_backward: the replicas of nn\.DataParallel"):
        in_parallel(model, torch.randn(4, 13))
    assert optimizer.param_groups


def test_a_shared_network_goes_on_after_its_replicas():
    model, x = ek.share_selection(network(ek.TopK(0.3))), torch.randn(4, 13)
    y = in_parallel(model, x)
    torch.testing.assert_close(model(x), y)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].scores.normal_()
    assert isinstance(twin[0], nn.Linear) and not torch.equal(twin(x), y)
