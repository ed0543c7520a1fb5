"""What users see: names, signatures and docstrings of the package and its layers."""

import importlib
import inspect
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

LAYERS = [
    *(ek.FusedSubnetConv, ek.FusedSubnetLinear, ek.FusedSupermaskConv, ek.FusedSupermaskLinear),
    *(ek.FusedSparseConv, ek.FusedSparseLinear),
    *(ek.FusedSubnetConv1d, ek.FusedSupermaskConv1d, ek.FusedSparseConv1d),
    *(ek.FusedSubnetConv3d, ek.FusedSupermaskConv3d, ek.FusedSparseConv3d),
    *(ek.FusedSubnetConvTranspose1d, ek.FusedSupermaskConvTranspose1d, ek.FusedSparseConvTranspose1d),
    *(ek.FusedSubnetConvTranspose2d, ek.FusedSupermaskConvTranspose2d, ek.FusedSparseConvTranspose2d),
]
OF_ALL = {
    *("scores", "rule", "keep", "set_prune_rate", "reset_scores"),
    *("select", "forget", "mask", "packed_mask", "mask_bits", "effective_weight", "effective_bias"),
    "masked_weight",
    *("freeze", "thaw", "train_mask", "train_weight", "materialize"),
}
OF_SUPERMASKS = {"scores_init", "rescale", "bias_scores", "bias_mask"}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_adds_names_for_users_alone(kind):
    plain, sizes, shape = next(
        (plain, sizes, shape)
        for plain, sizes, shape in (
            (nn.Conv2d, (3, 4, 1), (3, 5, 5)),
            (nn.Conv1d, (3, 4, 1), (3, 5)),
            (nn.Conv3d, (3, 4, 1), (3, 5, 5, 5)),
            (nn.ConvTranspose2d, (3, 4, 1), (3, 5, 5)),
            (nn.ConvTranspose1d, (3, 4, 1), (3, 5)),
            (nn.Linear, (3, 4), (5, 3)),
        )
        if issubclass(kind, plain)
    )
    layer, plain = kind(*sizes), plain(*sizes)
    ek.share_selection(layer)
    layer(torch.randn(shape)).sum().backward()
    added = {name for name in dir(layer) if not name.startswith("_")} - set(dir(plain))
    added -= {"qconfig"}  # torch.ao.quantization's, met to be refused
    assert added == OF_ALL | (OF_SUPERMASKS if "Supermask" in kind.__name__ else set())


@pytest.mark.parametrize("kind", [*LAYERS, ek.NonAffineBatchNorm])
def test_forward_says_what_it_takes_and_returns(kind):
    text = inspect.getdoc(kind.forward)
    arguments = list(inspect.signature(kind.forward).parameters)[1:]
    assert arguments and all(f"\n{argument} " in text for argument in arguments)
    assert "\nreturns " in text and "dtype" in text
    assert (inspect.getdoc(kind) and "Raises" in text) or kind is ek.NonAffineBatchNorm


@pytest.mark.parametrize("call", [ek.convert, ek.select, ek.select_all, ek.mask, ek.masked_linear, *LAYERS])
def test_signatures_name_a_rule_by_one_word(call):
    shown = str(inspect.signature(call))
    assert "Rule" in shown and "TopK" not in shown and "Percentile" not in shown
    assert len(shown) < 700


def test_dir_is_the_api():
    assert set(dir(ek)) == {*ek.__all__, "__version__", "methods"} and dir(ek) == sorted(dir(ek))
    assert not [name for name in dir(ek) if not hasattr(ek, name)]
    modules = [name for name in dir(ek) if inspect.ismodule(getattr(ek, name))]
    assert modules == ["density", "init", "interop", "methods", "optim"]
    namespace = OrderedDict()
    exec("from edgepop_kernels import *", namespace)
    assert set(ek.__all__) <= namespace.keys()
    with pytest.raises(AttributeError, match=r"^module 'edgepop_kernels' has no attribute 'fused_conv'"):
        _ = ek.fused_conv


def test_methods_are_there_without_an_import_of_their_own():
    code = "import edgepop_kernels as ek, sys; assert 'edgepop_kernels.methods' not in sys.modules; print(ek.methods)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "edgepop_kernels.methods" in done.stdout, done.stderr
    assert ek.methods is importlib.import_module("edgepop_kernels.methods")
