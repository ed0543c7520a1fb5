"""GPT-2's layer of transformers, which need not be there: a module of its name stands in for it where it is not."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.nn import CLASSES, KINDS
from edgepop_kernels.testing.oracle import mask as oracle_mask
from edgepop_kernels.testing.tolerances import assert_close

BACKENDS = [n for n, reason in ek.backends().items() if reason is None]


class Conv1D(nn.Module):
    """Written anew: what masks of it rely on is its constructor, its names and its product."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.02), nn.Parameter(torch.zeros(nf))

    def __repr__(self):
        return f"Conv1D(nf={self.nf}, nx={self.nx})"

    def forward(self, x):
        return x @ self.weight + self.bias


PLACE, OURS = "transformers.pytorch_utils", "edgepop_kernels.interop.transformers"


@pytest.fixture(params=["standing in", "transformers"])
def conv1d(request, monkeypatch):
    """The class; of one that stands in for it nothing is known afterwards."""
    if request.param == "transformers":
        pytest.importorskip("transformers")
        from transformers.pytorch_utils import Conv1D as real

        yield real
        return
    kind = types.new_class("Conv1D", (Conv1D,), exec_body=lambda names: names.update(__module__=PLACE))
    for name in ("transformers", PLACE):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[PLACE].Conv1D = kind
    before = sys.modules.pop(OURS, None)
    yield kind
    KINDS.pop(kind, None)
    for key in [key for key in CLASSES if key[1] is kind]:
        del CLASSES[key]
    sys.modules.pop(OURS, None)
    if before is not None:
        sys.modules[OURS] = before


def network(kind):
    torch.manual_seed(0)
    model = nn.Sequential(kind(23, 17), nn.GELU(), kind(17, 23), nn.Linear(17, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["subnet", "supermask", "sparse"])
def test_it_is_converted_and_learns_as_its_effective_weight_does(conv1d, method, backend):
    model = ek.convert(network(conv1d), method=method, left="raise")
    layer = model[0]
    assert isinstance(layer, conv1d) and type(layer).__name__.startswith("Fused")
    assert repr(layer).startswith(f"{type(layer).__name__}(nf=23, nx=17, rule=")
    ranked = layer.weight if layer.scores is None else layer.scores
    kept = oracle_mask(ranked, layer.rule)
    assert torch.equal(layer.mask(), kept)
    for x in (torch.randn(3, 7, 17), torch.randn(17), torch.randn(7, 3, 17).transpose(0, 1)):
        x.requires_grad_()
        with ek.use_backend(backend):
            y = layer(x)
            dy = torch.randn_like(y)
            dx, dranked, db = torch.autograd.grad(y, (x, ranked, layer.bias), dy)
        effective = (layer.weight.detach() * kept).double().requires_grad_()
        exact = x.detach().double().requires_grad_()
        want = exact @ effective + layer.bias.detach().double()
        want_dx, dense = torch.autograd.grad(want, (exact, effective), dy.double())
        assert_close("y", y, want, torch.float32)
        assert_close("dx", dx, want_dx, torch.float32)
        assert_close("db", db, dy.double().reshape(-1, 23).sum(0), torch.float32)
        s = ranked.detach().double()
        slope = {"subnet": s.sign(), "supermask": s.sigmoid() * (1 - s.sigmoid()), "sparse": None}[method]
        weight = layer.weight.detach().double()
        assert_close("dranked", dranked, dense if slope is None else dense * weight * slope, torch.float32)


def test_it_is_saved_loaded_and_goes_back(conv1d, tmp_path):
    model, x = ek.convert(network(conv1d), keep=0.3, init="signed_constant", scale="paper"), torch.randn(3, 17)
    assert model[0].weight.abs().unique().item() == pytest.approx((2 / (17 * 0.3)) ** 0.5)  # of 17 inputs
    assert model[0].scores.abs().max() <= 17**-0.5
    again = ek.convert(network(conv1d), keep=0.5)
    again.load_state_dict(model.state_dict())
    assert again[0].rule == ek.TopK(0.3) and torch.equal(again(x), model(x))
    ek.save_packed(model, tmp_path / "model.safetensors")
    plain = ek.load_packed(tmp_path / "model.safetensors", network(conv1d))
    assert type(plain[0]) is conv1d
    assert_close("y", plain(x), model(x).double(), torch.float32)
    ek.pack_weights(again)
    assert torch.equal(again(x), model(x))
    for layer in again:
        if isinstance(layer, ek.nn.MaskedLayer):
            layer.bias.requires_grad_(False)
    bank = ek.MaskBank(again)
    for _ in range(2):
        bank.add()
    bank.use(0)
    want = bank(x).double()
    bank.mix(torch.tensor([1.0, 0.0]))
    assert_close("y", bank(x), want, torch.float32)
    model[0].reset_parameters()
    assert model[0].weight.std() < 0.03 and model[0].bias.abs().max() == 0
    assert type(ek.materialize(model)[0]) is conv1d and "Fused" not in repr(model)


def test_fused_backward_steps_in_its_backward(conv1d):
    models = []
    for fused in (False, True):
        model = ek.convert(network(conv1d), keep=0.5, init="signed_constant")
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9, fused_backward=fused)
        for x in torch.randn(3, 4, 17, generator=torch.Generator().manual_seed(1)):
            model.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        models.append(model)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)


def test_another_class_of_the_name_is_left_dense(conv1d):
    with pytest.warns(ek.LeftDense, match=r"1 Conv1D \(0: 15 weights\)"):
        ek.convert(nn.Sequential(Conv1D(3, 5), nn.Linear(3, 3)))
    with pytest.raises(ValueError, match=r"x: expected \(\.\.\., 17\) for weight \(17, 23\), got \(2, 3\)"):
        ek.convert(network(conv1d))[0](torch.randn(2, 3))


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_a_gpt2_is_masked_but_for_its_embeddings():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=99, n_positions=32, n_embd=32, n_layer=2, n_head=4))
    ek.convert(model, keep=0.5, exclude="lm_head", left="ignore")
    assert sum(row.total for row in ek.summary(model).rows) == 2 * (32 * 96 + 32 * 32 + 2 * 32 * 128)
