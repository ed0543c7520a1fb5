"""What a conversion leaves dense is said, can be stopped, and stands in the summary."""

import copy
import warnings

import pytest
import torch
from torch import nn

import edgepop_kernels as ek


class Conv1D(nn.Module):
    """The shape of GPT-2's: a linear layer with its weight transposed."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class StdConv2d(nn.Conv2d):
    """A subclass, as timm has many."""


def said(model, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ek.convert(model, **options)
    return [str(w.message) for w in seen if issubclass(w.category, ek.LeftDense)]


def beside(*layers):
    return nn.Sequential(nn.Linear(5, 7), *layers)


LEFT = {
    "a subclass": (StdConv2d(3, 5, 3, bias=False), r"1 StdConv2d \(1: 135 weights\)"),
    "GPT-2's layers": (Conv1D(7, 9), r"1 Conv1D \(1: 63 weights\), 2 biases"),
    "recurrent": (nn.LSTM(3, 2, bias=False), r"1 LSTM\.weight_ih_l0 \(1: 24 .*1 LSTM\.weight_hh_l0 \(1: 16"),
    "of three dimensions": (nn.ConvTranspose3d(3, 5, 3, bias=False), r"1 ConvTranspose3d \(1: 405 weights\), 1 bias\."),
    "attention": (
        nn.MultiheadAttention(6, 2),
        r"1 MultiheadAttention\.in_proj_weight \(1: 108 .*1 NonDynamicallyQuantizableLinear \(1\.out_proj: 36",
    ),
    "an embedding": (nn.Embedding(9, 4), r"left dense, 36 of 78 weights train without a mask: 1 Embedding \(1: 36"),
    "lazy": (nn.LazyLinear(3, bias=False), r"1 LazyLinear \(1: not known before a forward\)"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
@pytest.mark.parametrize("what", LEFT)
def test_what_stays_dense_is_said_once_by_class_and_name(what, method):
    layer, words = LEFT[what]
    (message,) = said(beside(copy.deepcopy(layer)), method=method)
    with pytest.warns(ek.LeftDense, match=words):
        ek.convert(beside(copy.deepcopy(layer)), method=method)
    assert message.startswith("left dense, ") and "freeze_rest=True" in message


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ([nn.BatchNorm1d(7), nn.LayerNorm([7, 2]), nn.PReLU(7)], {}),
        ([nn.Linear(7, 7), StdConv2d(3, 5, 3).requires_grad_(False)], {}),
        ([nn.Linear(7, 3)], {"exclude": "1"}),
        ([nn.Linear(7, 3)], {"include": "0"}),
        ([StdConv2d(3, 5, 3)], {"exclude": "1"}),
        ([nn.LSTM(3, 4)], {"left": "ignore"}),
        ([nn.LSTM(3, 4)], {"freeze_rest": True, "left": "raise"}),
    ],
)
def test_norms_biases_and_what_is_meant_are_not_worth_a_word(layers, options):
    assert said(beside(*copy.deepcopy(layers)), **options) == []


@pytest.mark.parametrize("first", ["head", "embedding"])
def test_an_embedding_whose_tied_head_is_excluded_is_told_of(first):
    layers = {"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)}
    model = nn.ModuleDict({"body": nn.Linear(4, 4), first: layers.pop(first), **layers})
    model["head"].weight = model["embedding"].weight
    (message,) = said(model, exclude="head")
    assert message.startswith("left dense, 36 of 56 weights train without a mask: 1 Embedding (embedding: 36 weights)")


def test_left_raise_leaves_the_model_as_it_was():
    model = beside(nn.LSTM(3, 4))
    with pytest.raises(ValueError, match=r"^left: left dense, .* weights train without a mask: 1 LSTM\.weight_hh_l0"):
        ek.convert(model, left="raise")
    assert type(model[0]) is nn.Linear and model[0].weight.requires_grad
    assert isinstance(ek.convert(beside(nn.BatchNorm1d(7)), left="raise")[0], ek.FusedSubnetLinear)


@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
def test_freeze_rest_leaves_masks_alone_to_train(method):
    model = ek.convert(beside(nn.BatchNorm1d(7), Conv1D(7, 7), nn.Linear(7, 3)), method=method, freeze_rest=True)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains == ({"0.weight", "3.weight"} if method == "sparse" else {"0.scores", "3.scores"})
    model(torch.randn(4, 5)).sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trains
    assert ek.summary(model).left == []


def test_norms_lose_scale_and_shift_where_asked():
    model = beside(nn.BatchNorm1d(7), nn.Linear(7, 3))
    model(torch.randn(8, 5))
    statistics, norm = model[1].running_mean.clone(), model[1]
    ek.convert(model, norm="non-affine")
    assert model[1] is norm and type(norm) is nn.BatchNorm1d and norm.weight is norm.bias is None and not norm.affine
    assert torch.equal(norm.running_mean, statistics)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"0.scores", "0.bias", "2.scores", "2.bias"}
    assert model(torch.randn(8, 5)).shape == (8, 3)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"left": "quiet"}, "left"),
        ({"left": None}, "left"),
        ({"freeze_rest": 1}, "freeze_rest"),
        ({"norm": "none"}, "norm"),
        ({"norm": "non-affine"}, "norm"),
    ],
    ids=str,
)
def test_wrong_words_are_answered_by_those_there_are(options, argument):
    model = beside(nn.LayerNorm(7))
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: .*(expected|no batch norm)"):
        ek.convert(model, **options)
    assert type(model[0]) is nn.Linear


def test_a_pattern_that_matches_a_container_alone_is_still_an_error():
    with pytest.raises(ValueError, match=r"^exclude: '1' matches none of the layers 0, 1\.0$"):
        ek.convert(beside(nn.Sequential(nn.Linear(7, 3))), exclude="1")
