"""What convolutions of one and of three dimensions are tested for alike."""

import torch
import torch.nn.functional as F

import edgepop_kernels as ek
from edgepop_kernels.testing.oracle import mask as oracle_mask
from edgepop_kernels.testing.tolerances import assert_close

AVAILABLE = [name for name, reason in ek.backends().items() if reason is None]
OPTIONS = {"subnet": dict(keep=0.4), "supermask": dict(mask_bias=True), "sparse": dict(keep=0.4)}


def check_product(product, torchs, case, dtype, backend):
    """``product`` is ``torchs`` with the masked weight, gradients too. case: the shapes of x and weight, the layout of
    all, and the options of both."""
    options = {name: value for name, value in case.items() if name not in ("x", "weight", "layout")}
    layout = case.get("layout", torch.contiguous_format)
    x = torch.randn(case["x"]).to(dtype, memory_format=layout)
    weight, scores = (torch.randn(case["weight"]).to(memory_format=layout) for _ in range(2))
    rule, bias = ek.TopK(0.4), torch.randn(len(weight))
    leaves = [t.clone().requires_grad_() for t in (x, weight, scores, bias)]
    with ek.use_backend(backend):
        y = product(*leaves[:3], rule, leaves[3], **options)
        g = torch.randn(y.shape).to(dtype)
        dx, dw, ds, db = torch.autograd.grad(y, leaves, g)
    kept = oracle_mask(scores, rule)
    effective = (weight * kept).to(dtype).double().requires_grad_()
    exact = x.double().requires_grad_()
    want = torchs(exact, effective, bias.double(), **options)
    want_dx, dense = torch.autograd.grad(want, (exact, effective), g.double())
    channels = g.dim() - weight.dim() + 1
    assert y.is_contiguous(memory_format=layout)
    assert_close("y", y, want.detach(), dtype)
    assert_close("dx", dx, want_dx, dtype)
    assert_close("ds", ds, dense * weight.double() * scores.sign(), dtype)
    assert_close("dw", dw, dense * kept, dtype)
    assert_close("db", db, g.double().sum(tuple(d for d in range(g.dim()) if d != channels)), dtype)


def check_fixed_and_self_scored(product, torchs, x, weight):
    mask = torch.rand(weight.shape) > 0.5
    for scores in (mask, ek.pack_mask(mask)):
        y = product(x, weight, scores, ek.Frozen())
        assert_close("y", y, torchs(x.double(), weight.double() * mask), torch.float32)
    y = product(x, weight, None, ek.TopK(0.5))
    assert_close("y", y, torchs(x.double(), weight.double() * oracle_mask(weight, ek.TopK(0.5))), torch.float32)


def check_layer(layer, torchs, x, backend):
    """The layer is that of class ``torchs`` with its effective weight, and becomes it."""
    assert isinstance(layer, torchs)
    plain = layer.materialize()
    assert type(plain) is torchs and plain.padding_mode == layer.padding_mode
    with ek.use_backend(backend):
        y = layer(x)
        y.square().sum().backward()
    assert_close("y", y, plain.double()(x.double()), torch.float32)
    for name, p in layer.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
    assert torch.equal(layer.materialize()(x), ek.materialize(layer)(x))
    assert type(layer) is torchs and not hasattr(layer, "scores")


def check_network(network, method, kind, x):
    """A network of five classes, made by ``network`` and masked by ``method``, whose first layer is then of ``kind``,
    learns, and its state goes into another."""
    torch.manual_seed(0)
    model = ek.share_selection(ek.convert(network(), method=method))
    assert type(model[0]) is kind
    optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
    labels, losses = torch.arange(len(x)) % 5, []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = ek.convert(network(), method=method)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))
    want = model(x)
    assert_close("y", ek.materialize(model)(x), want.double(), torch.float32)
