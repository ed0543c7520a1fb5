"""Masked networks in the hands of tools that take networks apart: they work, or say in a sentence what to do first."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.fx
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import edgepop_kernels as ek

FIRST = r"materialize\(model\) first"


def network(rule=None, method="subnet"):
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return ek.convert(nn.Sequential(*convs, nn.Linear(28, 5)), rule, method=method).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frozen", [False, True], ids=["selected", "frozen"])
def test_torch_jit_trace_is_refused_in_a_sentence(images, frozen):
    model = network(ek.TopK(0.3))
    for layer in (m for m in model if frozen and hasattr(m, "scores")):
        layer.freeze()
    with pytest.raises(RuntimeError, match=f"torch.jit.trace .*{FIRST}"):
        torch.jit.trace(model, images)
    traced = torch.jit.trace(ek.materialize(model, copy=True), images)
    torch.testing.assert_close(traced(images), model(images))


def test_a_traced_product_of_tensors_is_refused_as_well():
    weight, scores = torch.randn(5, 7), torch.randn(5, 7)
    with pytest.raises(RuntimeError, match=f"torch.jit.trace .*{FIRST}"):
        torch.jit.trace(lambda x: ek.masked_linear(x, weight, scores, ek.TopK(0.5)), torch.randn(2, 7))


def test_torch_jit_script_is_refused_in_a_sentence(images):
    model = network(ek.TopK(0.3))
    with pytest.raises(RuntimeError, match=f"torch.jit.script .*{FIRST}"):
        torch.jit.script(model)
    scripted = torch.jit.script(ek.materialize(model, copy=True))
    torch.testing.assert_close(scripted(images), model(images))


def test_onnx_export_through_a_trace_is_refused_in_a_sentence(images):
    with pytest.raises(RuntimeError, match=FIRST):
        torch.onnx.export(network(ek.TopK(0.3)), (images,), io.BytesIO(), dynamo=False)


def test_onnx_export_through_torch_export_is_refused_in_a_sentence(images):
    pytest.importorskip("onnxscript")
    with pytest.raises(RuntimeError, match=f"torch.onnx has no operators .*{FIRST}"):
        torch.onnx.export(network(ek.TopK(0.3)), (images,), io.BytesIO(), dynamo=True)


def test_quantization_is_refused_in_a_sentence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(ValueError, match=f"qconfig: .*{FIRST}"):
            torch.ao.quantization.quantize_dynamic(network(ek.TopK(0.3)), {nn.Linear})
        conv = ek.FusedSubnetConv(3, 4, 3)
        with pytest.raises(ValueError, match=f"qconfig: .*{FIRST}"):
            conv.qconfig = torch.ao.quantization.default_qconfig
        torch.ao.quantization.quantize_dynamic(nn.Sequential(conv, nn.LSTM(3, 4)), {nn.LSTM})  # masked: no Linear


@pytest.mark.parametrize("rule", [ek.TopK(0.3), ek.Threshold(0.5)], ids=str)
def test_torch_fx_keeps_masked_layers_whole(images, rule):
    model = network(rule).train()
    graph = torch.fx.symbolic_trace(model)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == ["0", "1", "2", "3", "4", "5"]
    graph.eval()
    model.eval()
    assert torch.equal(graph(images), model(images))
    with torch.no_grad():
        model[0].scores.normal_()
    assert torch.equal(graph(images), model(images))  # it selects in every call


def test_torch_fx_takes_an_attribute_of_a_traced_value_for_an_input():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ek.FusedSubnetLinear(5, 3)

        def forward(self, x):
            return self.layer(x.T)

    model, x = Transposed(), torch.randn(5, 7)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


def test_torch_fx_traces_a_network_that_shares_its_selection(images):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = ek.share_selection(network(ek.TopK(0.3)))

        def forward(self, x):
            return self.body(x) * 2

    model = Whole()
    graph = torch.fx.symbolic_trace(model)
    assert torch.equal(graph(images), model(images))


RULES = {"subnet": ek.TopK(0.3), "sparse": ek.TopK(0.3), "supermask": ek.Threshold(0.0, of="raw")}


@pytest.mark.parametrize("method", RULES)
def test_a_batch_norm_is_folded_into_the_weight_and_the_mask_stays(images, method):
    model = network(RULES[method], method)
    conv, norm = model[0], model[1]
    with torch.no_grad():
        norm.weight.uniform_(0.01, 5)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        if conv.scores is not None:
            conv.scores.normal_()
    fused = fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close(fused(images), norm(conv(images)), rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.mask(), conv.mask())
    assert conv.rule == RULES[method]


@pytest.mark.parametrize("method", RULES)
def test_a_batch_norm_is_folded_into_a_linear_layer_too(method):
    model = ek.convert(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5)), RULES[method], method=method).eval()
    nn.init.uniform_(model[1].weight, 0.01, 5)
    x = torch.randn(3, 7)
    fused = fuse_linear_bn_eval(*model)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(fused.mask(), model[0].mask())


class Branches(nn.Module):
    """Folds its branches into one convolution for inference, as RepVGG and MobileOne do."""

    def __init__(self):
        super().__init__()
        self.wide, self.small = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(3, 4, 1, bias=False)
        self.folded = None

    def forward(self, x):
        return self.wide(x) + self.small(x) if self.folded is None else self.folded(x)

    @torch.no_grad()
    def _fuse_tensor(self, branch):
        return nn.functional.pad(branch.weight, [(3 - branch.kernel_size[0]) // 2] * 4)

    def reparameterize(self):
        folded = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        folded.weight.data = self._fuse_tensor(self.wide) + self._fuse_tensor(self.small)
        self.folded = folded


def test_branches_are_not_folded_without_their_masks(images):
    model = ek.convert(Branches(), ek.TopK(0.3))
    y = model(images)
    with pytest.raises(RuntimeError, match=rf"^weight: _fuse_tensor would fold it .* without its mask: .*{FIRST}"):
        model.reparameterize()
    assert torch.equal(model(images), y)
    plain = ek.materialize(model, copy=True)
    plain.reparameterize()
    torch.testing.assert_close(plain(images), y)


def test_a_weight_is_read_and_set_by_its_name_as_ever():
    layer = ek.FusedSubnetLinear(7, 5)
    assert layer.weight is dict(layer.named_parameters())["weight"]
    layer.weight = nn.Parameter(torch.ones(5, 7))
    assert layer.weight.sum() == 35
    del layer.weight
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match="'FusedSubnetLinear' object has no attribute 'weight'"):
        layer.weight  # noqa: B018


def test_a_batch_norm_is_not_folded_into_a_masked_bias():
    conv = ek.FusedSupermaskConv(3, 4, 3, mask_bias=True).eval()
    frozen = copy.deepcopy(conv)
    frozen.freeze()
    for layer in (conv, frozen):
        with pytest.raises(ValueError, match=f"conv: its bias is masked.*{FIRST}"):
            fuse_conv_bn_eval(layer, nn.BatchNorm2d(4).eval())


def test_a_weight_that_scores_itself_is_replaced_as_any_other():
    conv = ek.FusedSparseConv(3, 4, 3).eval()
    conv.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    assert conv.rule == ek.TopK(0.5)


def test_a_layer_keeps_its_weight_still_when_all_of_it_is_unfrozen():
    for layer, trains in [
        (ek.FusedSubnetLinear(5, 3), {"scores", "bias"}),
        (ek.FusedSupermaskConv(5, 3, 3, mask_bias=True), {"scores", "bias_scores"}),
        (ek.FusedSparseLinear(5, 3), {"weight", "bias"}),
    ]:
        assert layer.requires_grad_(False) is layer
        assert not any(p.requires_grad for p in layer.parameters())
        assert layer.requires_grad_() is layer
        assert {n for n, p in layer.named_parameters() if p.requires_grad} == trains
        layer.freeze(keep_scores=True)
        layer.requires_grad_()
        names = {n for n, p in layer.named_parameters() if p.requires_grad}
        assert names == {"weight", "bias"}


def test_weights_that_a_whole_network_unfroze_are_told_of_once(images):
    model = network(ek.TopK(0.3)).train()
    model.requires_grad_(False)
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"trains beside its scores.*train_masks\(model\)"):
        model(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images)
        again = ek.train_masks(network(ek.TopK(0.3)).train().requires_grad_(True))
        again(images).sum().backward()
        ek.train_weights(again)(images)
    assert again[0].weight.grad is None


def test_a_weight_replaced_after_conversion_is_what_a_shape_error_names():
    layer = ek.convert(nn.Linear(7, 5), ek.TopK(0.5))
    layer.weight = nn.Parameter(torch.randn(6, 7), requires_grad=False)
    with pytest.raises(ValueError, match=r"scores: expected the weight's shape \(6, 7\), got \(5, 7\); .* convert"):
        layer(torch.randn(2, 7))


def test_a_forward_hook_may_replace_the_output(images):
    model = network(ek.TopK(0.3))
    handle = model[0].register_forward_hook(lambda layer, args, y: y + 1)
    raised = nn.Sequential(*model)(images)
    handle.remove()
    torch.testing.assert_close(raised, nn.Sequential(*model[1:])(model[0](images) + 1))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_a_layer_computes_the_same_and_selects_anew(copied):
    layer, x = ek.FusedSubnetLinear(7, 5), torch.randn(3, 7)
    y = layer(x)
    twin = copied(layer)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        twin.scores.normal_()
    plain = twin.materialize()
    torch.testing.assert_close(twin(x), plain(x))
