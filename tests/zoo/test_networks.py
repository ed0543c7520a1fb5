"""Real networks, converted: they compute, learn, save and go back as plain torch with W * M does, and say what they
leave. Random weights, nothing is downloaded."""

import fnmatch
import re
import warnings

import judge
import pytest
import torch
from networks import NETWORKS

import edgepop_kernels as ek

# Of the largest value. Plain torch in float32 is off from float64 by 1.5e-6 (outputs) and 9e-6 (gradients) at most.
OUTPUT, GRADIENT = 2e-5, 2e-4
RULE = ek.TopK(0.3)


def built(network):
    """As its library makes it, but for what starts at a constant: zeros and ones would hide what is wrong."""
    torch.manual_seed(0)
    model = network.build(pytest.importorskip(network.library))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
    return model


def converted(network, rule=RULE):
    return ek.convert(built(network), rule, exclude=(*network.reads, *network.exclude), left="ignore")


def inputs(network):
    torch.manual_seed(1)
    return network.inputs()


def learning(model):
    """In training mode but for batch norms: over few pixels they make a ReLU's kink out of any rounding."""
    model.train()
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.eval()
    return model


def test_a_converted_network_computes_and_learns_as_plain_torch_does(network):
    model, given = learning(converted(network)), inputs(network)
    assert judge.masked(model)
    twin = judge.plain(model)
    assert judge.off(judge.learn(model, given), judge.learn(twin, given)) <= OUTPUT
    gradients = judge.gradients(model, twin)
    assert all(ours is not None and theirs is not None for ours, theirs in gradients.values())
    # Those of the keys' biases are 0 but for rounding: softmax takes nothing from what all keys have in common.
    least = 1e-4 * max(theirs.abs().max().item() for _, theirs in gradients.values())
    wrong = {name: judge.off(*both, least) for name, both in gradients.items()}
    assert max(wrong.values()) <= GRADIENT, max(wrong, key=wrong.get)


def test_layers_that_are_ranked_in_one_call_compute_the_same_bits(network):
    model, given = converted(network).eval(), inputs(network)
    with torch.no_grad():
        assert torch.equal(judge.run(ek.share_selection(model), given), judge.run(ek.unshare_selection(model), given))


def test_what_trains_without_a_mask_is_told_to_the_last_weight(network):
    model = built(network)
    total = sum(p.numel() for p in model.parameters())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ek.convert(model, RULE, exclude=network.exclude)
    messages = [str(w.message) for w in seen if w.category is ek.LeftDense]
    dense = judge.dense(model)
    counted = judge.counted([d for d in dense if not set(d.owners) <= set(network.exclude)])
    weights = sum(numel for _, numel in counted.values())
    assert [judge.told(m) for m in messages] == ([(weights, total, counted)] if weights else [])
    assert counted.keys() >= set(network.subclasses)
    summary = ek.summary(model)
    assert [(e.name, e.kind, e.parameter, e.numel) for e in summary.left] == [
        (d.module, d.kind, d.key, d.value.numel()) for d in dense
    ]
    assert summary.dense + summary.still + summary.total == total


def test_layers_whose_weight_is_read_are_named_by_the_first_forward(network):
    given = inputs(network)
    for exclude in (network.exclude, (*network.exclude, *network.reads)):
        model = ek.convert(built(network), RULE, exclude=exclude, left="ignore").eval()
        read = [name for name in judge.masked(model) if any(fnmatch.fnmatch(name, p) for p in network.reads)]
        assert bool(read) == (exclude is network.exclude and bool(network.reads))
        with warnings.catch_warnings(record=True) as seen, torch.no_grad():
            warnings.simplefilter("always")
            judge.run(model, given)
            judge.run(model, given)
        messages = [str(w.message) for w in seen if "not called" in str(w.message)]
        assert len(messages) == bool(read)
        for message in messages:
            names, more = re.search(r"after convert: (.*?)(?: and (\d+) more)?\. Where", message).groups()
            assert names.split(", ") == read[:8] and int(more or 0) == len(read[8:])


@pytest.mark.parametrize("network", [name for name, n in NETWORKS.items() if n.tied], indirect=True)
def test_a_tied_weight_is_refused_and_nothing_has_changed(network):
    torch.manual_seed(0)
    model = network.build(pytest.importorskip(network.library))
    trained = [p.requires_grad for p in model.parameters()]
    with pytest.raises(
        ValueError, match=rf"^model: {re.escape(f'{network.tied[0]}.weight is also {network.tied[1]},')}"
    ):
        ek.convert(model, RULE)
    assert not judge.masked(model) and [p.requires_grad for p in model.parameters()] == trained


def test_materialized_it_is_the_librarys_own_network(network):
    model, given = converted(network).eval(), inputs(network)
    fresh = built(network).eval()
    with torch.no_grad():
        y = judge.run(model, given)
        plain = ek.materialize(model, copy=True)
        assert [type(m) for m in plain.modules()] == [type(m) for m in fresh.modules()]
        fresh.load_state_dict(plain.state_dict())
        for other in (plain, fresh, ek.materialize(model)):
            assert judge.off(judge.run(other, given), y) <= OUTPUT


def test_a_state_dict_makes_a_fresh_conversion_the_same_network(network):
    model, given = converted(network).eval(), inputs(network)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
        again = converted(network, ek.TopK(0.7)).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(judge.run(again, given), judge.run(model, given))


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_branches_are_folded_after_materialize_and_refused_before(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = ek.convert(timm.create_model(name, num_classes=10), RULE, left="ignore").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        with pytest.raises(RuntimeError, match=r"^weight: _fuse_bn\w* would fold it .*materialize\(model\) first"):
            timm.models.reparameterize_model(model)
        assert torch.equal(model(x), y)
        assert judge.off(timm.models.reparameterize_model(ek.materialize(model))(x), y) <= 10 * OUTPUT
