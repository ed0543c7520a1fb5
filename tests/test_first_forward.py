"""A layer whose weight is read instead of called gets no mask there: the first forward says so, once."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek


class Reading(nn.Module):
    """As torchvision's Swin reads qkv."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(5, 7), nn.Linear(7, 3)
        self.fails = False

    def forward(self, x):
        if self.fails:
            raise RuntimeError("no forward")
        return self.proj(F.linear(x, self.qkv.weight, self.qkv.bias))


def network():
    return ek.convert(nn.Sequential(nn.Linear(5, 5), Reading()), ek.TopK(0.3))


def hooks(model):
    ours = [*model._forward_hooks.values(), *(h for m in model.modules() for h in m._forward_pre_hooks.values())]
    return [h for h in ours if "_FirstForward" in repr(h)]


def said(model, count=1, x=None):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(count):
            model(torch.randn(2, 5) if x is None else x)
    return [str(w.message) for w in seen]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["", "copy", "pickle"]
)
def test_the_first_forward_names_what_it_reads_instead_of_calling(shared, way):
    original = network()
    if shared:
        ek.share_selection(original)
    model = way(original)
    (message,) = said(model, 3)
    assert message.startswith("masked layers were not called in the first forward after convert: 1.qkv. ")
    assert not hooks(model) and "_edgepop_first_forward" not in vars(model)
    if model is not original:
        assert hooks(original) and len(said(original, 2)) == 1


def test_a_network_that_calls_all_of_its_layers_says_nothing_and_pays_nothing_afterwards():
    model = ek.convert(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert hooks(model)
    assert said(model, 2) == [] and not hooks(model) and not model._forward_hooks
    assert not hooks(ek.convert(nn.Linear(5, 3)))


def test_a_forward_that_raises_leaves_the_next_to_tell():
    model = network()
    model[1].fails = True
    with pytest.raises(RuntimeError, match="no forward"):
        model(torch.randn(2, 5))
    assert not hooks(model[0]) and not hooks(model[1].qkv)
    model[1].fails = False
    assert len(said(model, 2)) == 1


def test_two_conversions_of_a_model_are_told_of_together():
    model = nn.Sequential(nn.Linear(5, 5), Reading())
    ek.convert(model, include="0")
    ek.convert(model, include="1.*")
    assert len(said(model, 2)) == 1 and not hooks(model)


def test_materialize_takes_the_watch_off():
    model = ek.materialize(network())
    assert not hooks(model) and not model._forward_hooks and said(model) == []


def test_a_compiled_forward_leaves_it_to_the_first_that_is_not():
    model = network()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert [m for m in said(compiled) if "first forward" in m] == []
    assert hooks(model)
    assert len([m for m in said(model, 2) if "first forward" in m]) == 1


def test_a_layer_that_was_replaced_since_is_not_missed():
    model = ek.convert(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)))
    model[2] = nn.Linear(5, 4)  # another head
    assert said(model) == []
