"""Every wrong argument: a TypeError or ValueError that names it and says what is allowed, before anything runs."""

import math

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

X, W, S = torch.randn(2, 4, 6, 6), torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
M = torch.randn(8, 3)  # a matrix, weight and scores of the linear cases
RULE = ek.TopK(0.5)


def conv(x=X, weight=W, scores=S, rule=RULE, bias=None, **options):
    return lambda: ek.masked_conv2d(x, weight, scores, rule, bias, **options)


def linear(x=M, weight=M, scores=M, rule=RULE, bias=None, **options):
    return lambda: ek.masked_linear(x, weight, scores, rule, bias, **options)


# what is wrong: (call, error, name of the argument)
BAD = {
    "keep zero": (lambda: ek.TopK(0.0), ValueError, "keep"),
    "keep above one": (lambda: ek.TopK(1.5), ValueError, "keep"),
    "keep negative": (lambda: ek.TopK(-0.1), ValueError, "keep"),
    "keep nan": (lambda: ek.TopK(math.nan), ValueError, "keep"),
    "keep a string": (lambda: ek.TopK("half"), TypeError, "keep"),
    "keep a bool": (lambda: ek.TopK(True), TypeError, "keep"),
    "of unknown": (lambda: ek.TopK(0.5, of="squared"), ValueError, "of"),
    "cutoff outside": (lambda: ek.Threshold(1.5), ValueError, "cutoff"),
    "cutoff nan": (lambda: ek.Threshold(math.nan, "raw"), ValueError, "cutoff"),
    "cutoff a string": (lambda: ek.Threshold("0.5"), TypeError, "cutoff"),
    "inclusive a number": (lambda: ek.Threshold(0.5, inclusive=1), TypeError, "inclusive"),
    "numel negative": (lambda: ek.kept_count(-1, 0.5), ValueError, "numel"),
    "numel a float": (lambda: ek.kept_count(10.0, 0.5), TypeError, "numel"),
    "rule a number": (linear(rule=0.5), TypeError, "rule"),
    "rule a class": (linear(rule=ek.TopK), TypeError, "rule"),
    "x a list": (linear(x=[1.0]), TypeError, "x"),
    "x integer": (linear(x=torch.ones(5, 3, dtype=torch.int64)), TypeError, "x"),
    "x too wide": (linear(x=torch.randn(5, 4)), ValueError, "x"),
    "x a scalar": (linear(x=torch.tensor(1.0)), ValueError, "x"),
    "weight not a tensor": (linear(weight=None), TypeError, "weight"),
    "weight 4-d in linear": (linear(weight=W, scores=S), ValueError, "weight"),
    "weight of another dtype": (linear(weight=M.half()), TypeError, "weight"),
    "scores of another shape": (linear(scores=M[:4]), ValueError, "scores"),
    "scores integer": (linear(scores=M.int()), TypeError, "scores"),
    "scores bfloat16": (linear(scores=M.bfloat16()), TypeError, "scores"),
    "scores float64": (linear(scores=M.double()), TypeError, "scores"),
    "scores None under a threshold": (linear(scores=None, rule=ek.Threshold()), ValueError, "scores"),
    "scores None, half weight": (conv(x=X.half(), weight=W.half(), scores=None), TypeError, "weight"),
    "scores on another device": (linear(scores=M.to("meta")), ValueError, "scores"),
    "bias of another length": (linear(bias=torch.zeros(3)), ValueError, "bias"),
    "bias of another dtype": (linear(bias=torch.zeros(8, dtype=torch.float64)), TypeError, "bias"),
    "bias a number": (linear(bias=1.0), TypeError, "bias"),
    "frozen without mask": (linear(scores=None, rule=ek.Frozen()), ValueError, "scores"),
    "frozen with scores": (linear(rule=ek.Frozen()), TypeError, "scores"),
    "frozen, few bits": (linear(scores=torch.zeros(3, dtype=torch.uint8), rule=ek.Frozen()), ValueError, "bits"),
    "cut not a Cut": (linear(cut=torch.zeros(2, dtype=torch.int64)), TypeError, "cut"),
    "cut of another map": (linear(cut=ek.select(M, ek.Threshold(0.5, "raw"))), ValueError, "cut"),
    "conv x 2-d": (conv(x=X[0, 0]), ValueError, "x"),
    "conv channels": (conv(x=X[:, :3]), ValueError, "x"),
    "conv smaller than kernel": (conv(x=X[:, :, :2]), ValueError, "x"),
    "stride zero": (conv(stride=0), ValueError, "stride"),
    "stride a float": (conv(stride=1.5), TypeError, "stride"),
    "stride of three": (conv(stride=(1, 1, 1)), TypeError, "stride"),
    "padding negative": (conv(padding=-1), ValueError, "padding"),
    "padding unknown": (conv(padding="full"), ValueError, "padding"),
    "padding same with stride": (conv(padding="same", stride=2), ValueError, "padding"),
    "dilation zero": (conv(dilation=(1, 0)), ValueError, "dilation"),
    "groups zero": (conv(groups=0), ValueError, "groups"),
    "groups no divisor": (conv(groups=3), ValueError, "groups"),
    "groups a float": (conv(groups=2.0), TypeError, "groups"),
    "select of a frozen mask": (lambda: ek.select(S, ek.Frozen()), ValueError, "rule"),
    "select of doubles": (lambda: ek.select(S.double(), RULE), TypeError, "scores"),
    "select of a list": (lambda: ek.select([1.0, 2.0], RULE), TypeError, "scores"),
    "select_all of a tensor": (lambda: ek.select_all(S, [RULE]), TypeError, "scores"),
    "select_all counts": (lambda: ek.select_all([S, S], [RULE]), ValueError, "rules"),
    "select_all hints": (lambda: ek.select_all([S], [RULE], hints=[None, None]), ValueError, "hints"),
    "hint not a Cut": (lambda: ek.select(S, RULE, hint=0.5), TypeError, "hint"),
    "mask of floats": (lambda: ek.pack_mask(S), TypeError, "mask"),
    "bits of floats": (lambda: ek.unpack_mask(S, (8,)), TypeError, "bits"),
    "bits too few": (lambda: ek.unpack_mask(torch.zeros(8, dtype=torch.uint8), (8,)), ValueError, "bits"),
    "backend unknown": (lambda: ek.use_backend("fast"), ValueError, "backend"),
    "layer keep": (lambda: ek.FusedSubnetConv(3, 4, 3, keep=0), ValueError, "keep"),
    "layer rule": (lambda: ek.FusedSubnetLinear(3, 4, rule="topk"), TypeError, "rule"),
    "layer frozen at birth": (lambda: ek.FusedSubnetLinear(3, 4, rule=ek.Frozen()), ValueError, "rule"),
    "layer prune rate": (lambda: ek.FusedSubnetLinear(3, 4).set_prune_rate(2), ValueError, "prune_rate"),
    "layer keep and rule": (lambda: ek.FusedSubnetConv(3, 4, 3, keep=0.3, rule=ek.TopK(0.5)), ValueError, "keep"),
    "sparse layer keep and rule": (lambda: ek.FusedSparseLinear(3, 4, keep=0.5, rule=ek.TopK()), ValueError, "keep"),
    "convert rule": (lambda: ek.convert(nn.Linear(2, 2), 0.5), TypeError, "rule"),
    "convert keep and rule": (lambda: ek.convert(nn.Linear(2, 2), ek.TopK(0.5), keep=0.5), ValueError, "keep"),
    "convert keep of 0": (lambda: ek.convert(nn.Linear(2, 2), keep=0), ValueError, "keep"),
    "convert keep of a list": (lambda: ek.convert(nn.Linear(2, 2), keep=[0.5]), TypeError, "keep"),
    "convert keep by pattern": (lambda: ek.convert(nn.Linear(2, 2), keep={"x": 0.5}), ValueError, "keep"),
    "convert scores": (lambda: ek.convert(nn.Linear(2, 2), scores="zeros"), ValueError, "scores"),
    "set_keep": (lambda: ek.set_keep(nn.Linear(2, 2), 0.5), ValueError, "model"),
    "NM of no group": (lambda: ek.NM(2, 0), ValueError, "m"),
    "Block of no weight": (lambda: ek.Block(0.5, (1, 0)), ValueError, "shape"),
    "Block of half": (lambda: ek.Block(1.5), ValueError, "keep"),
    "Channels along a kernel": (lambda: ek.Channels(0.5, dim=2), ValueError, "dim"),
    "convert keep of masks": (lambda: ek.convert(nn.Linear(2, 2), keep=0.5, method="supermask"), ValueError, "keep"),
    "convert patterns": (lambda: ek.convert(nn.Linear(2, 2), include=3), TypeError, "include"),
    "convert no pattern": (lambda: ek.convert(nn.Linear(2, 2), include=()), ValueError, "include"),
    "convert a pattern": (lambda: ek.convert(nn.Linear(2, 2), exclude=[nn.Linear]), TypeError, "exclude"),
    "convert nothing left": (lambda: ek.convert(nn.Linear(2, 2), exclude="*"), ValueError, "exclude"),
    "convert pattern": (lambda: ek.convert(nn.Sequential(nn.Linear(2, 2)), include="conv*"), ValueError, "include"),
    "share without layers": (lambda: ek.share_selection(nn.Linear(2, 2)), ValueError, "model"),
    "init scale": (lambda: ek.init.kaiming_normal_(W.clone(), scale="half"), ValueError, "scale"),
    "init mode": (lambda: ek.init.kaiming_normal_(W.clone(), mode="fan"), ValueError, "mode"),
    "cut dtype": (linear(cut=ek.Cut(torch.tensor([1.0, 2.0]), "abs")), ValueError, "cut"),
    "cut size": (linear(cut=ek.Cut(torch.zeros(3, dtype=torch.int64), "abs")), ValueError, "cut"),
    "cut strided": (linear(cut=ek.Cut(torch.zeros(2, 2, dtype=torch.int64)[:, 0], "abs")), ValueError, "cut"),
    "hint dtype": (lambda: ek.select(S, RULE, ek.Cut(torch.zeros(1, dtype=torch.int8), "abs")), ValueError, "hint"),
    "sparse x": (linear(x=M.to_sparse()), TypeError, "x"),
    "sparse scores": (lambda: ek.select(M.to_sparse(), RULE), TypeError, "scores"),
    "init keep": (lambda: ek.init.signed_constant_(W.clone(), 1.0, scale="hidden-networks"), ValueError, "keep"),
    "init vector": (lambda: ek.init.kaiming_uniform_(torch.zeros(3)), ValueError, "weight"),
}


@pytest.mark.parametrize(("call", "error", "name"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(call, error, name):
    with pytest.raises(error, match=rf"^{name}: ."):
        call()


def test_explicit_backend_says_why_it_refuses():
    with ek.use_backend("native"), pytest.raises(NotImplementedError, match=r"native.*float64"):
        ek.masked_linear(M.double(), M.double(), M, RULE)


def test_backend_choice_is_restored_after_an_error():
    with ek.use_backend("reference"):
        with pytest.raises(ZeroDivisionError), ek.use_backend("native"):
            raise ZeroDivisionError
        assert ek.masked_linear(M.double(), M.double(), M, RULE).dtype == torch.float64
