"""Other projects' layers by an import: their tensors, masks, gradients and state_dicts, against what is published of
them, written here anew in plain PyTorch."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.compat import dnw, hidden_networks, hidden_networks_mnist, hydra, torchao
from edgepop_kernels.testing.tolerances import assert_close


class AsIs(torch.autograd.Function):
    """The straight-through estimator: a mask forward, the gradient as it is backward."""

    @staticmethod
    def forward(ctx, ranked, mask):
        return mask.to(ranked.dtype)

    @staticmethod
    def backward(ctx, g):
        return g, None


def without_smallest(ranked, removed):
    """The mask that drops the ``removed`` smallest."""
    mask = torch.ones(ranked.numel())
    mask[ranked.detach().flatten().argsort()[:removed]] = 0
    return mask.view(ranked.shape)


def get_subnet(ranked, k):
    """Edge-popup's mask, int((1 - k) * n) dropped, k the fraction kept."""
    return AsIs.apply(ranked, without_smallest(ranked, int((1 - k) * ranked.numel())))


def draw_scores(layer, name="scores"):
    setattr(layer, name, nn.Parameter(torch.empty_like(layer.weight)))
    nn.init.kaiming_uniform_(getattr(layer, name), a=math.sqrt(5))


class Masked:
    """A layer of torch whose weight is computed by ``masked``."""

    def forward(self, x):
        if isinstance(self, nn.Linear):
            return F.linear(x, self.masked(), self.bias)
        return F.conv2d(x, self.masked(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class PlainSubnetConv(Masked, nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        draw_scores(self)

    def set_prune_rate(self, prune_rate):
        self.prune_rate = prune_rate

    def masked(self):
        return self.weight * get_subnet(self.scores.abs(), self.prune_rate)


class PlainFixedConv(PlainSubnetConv):
    def set_subnet(self):
        removed = int(self.prune_rate * self.scores.numel())
        self.scores = nn.Parameter(without_smallest(self.scores.abs(), removed), requires_grad=False)

    def masked(self):
        return self.weight * self.scores


class PlainExample(Masked):
    sparsity = 0.5

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        draw_scores(self)
        nn.init.kaiming_normal_(self.weight, mode="fan_in", nonlinearity="relu")
        self.weight.requires_grad = False

    def masked(self):
        return self.weight * get_subnet(self.scores.abs(), self.sparsity)


class PlainExampleConv(PlainExample, nn.Conv2d):
    pass


class PlainExampleLinear(PlainExample, nn.Linear):
    pass


class PlainSparseConv(Masked, nn.Conv2d):
    def set_prune_rate(self, prune_rate):
        self.prune_rate = prune_rate

    def masked(self):
        mask = without_smallest(self.weight.abs(), int(self.prune_rate * self.weight.numel()))
        return self.weight + (self.weight * mask - self.weight).detach()

    get_weight = masked


class PlainDNW(PlainSparseConv):
    def __init__(self, prune_rate, dim_in, dim_out):
        super().__init__(dim_in, dim_out, kernel_size=1, bias=False)
        self.prune_rate = prune_rate


class PlainPopup(Masked):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        draw_scores(self, "popup_scores")
        self.weight.requires_grad = False
        if self.bias is not None:
            self.bias.requires_grad = False

    def set_prune_rate(self, k):
        self.k = k

    def masked(self):
        return self.weight * get_subnet(self.popup_scores.abs(), self.k)


class PlainPopupConv(PlainPopup, nn.Conv2d):
    pass


class PlainPopupLinear(PlainPopup, nn.Linear):
    pass


class Everywhere(torch.autograd.Function):
    """A product whose factors both get the gradient as it is."""

    @staticmethod
    def forward(ctx, weight, mask):
        return weight * mask

    @staticmethod
    def backward(ctx, g):
        return g, g


class PlainSupermask(Masked, nn.Linear):
    """At or above the j-th smallest score, j = 1 + round(.01 * q * (n - 1)), q the percentage removed."""

    def __init__(self, sparsity_level, blocksize, fixed_mask, fixed_weight, *args, **kwargs):
        super().__init__(*args, **kwargs)
        draw_scores(self)
        self.scores.requires_grad = not fixed_mask
        self.weight.requires_grad = not fixed_weight
        self.sparsity_level = sparsity_level

    def masked(self):
        j = 1 + round(0.01 * (100 * self.sparsity_level) * (self.scores.numel() - 1))
        threshold = self.scores.detach().flatten().kthvalue(j).values
        return Everywhere.apply(self.weight, AsIs.apply(self.scores, self.scores >= threshold))


class Case:
    def __init__(self, ours, theirs, *args, rate=None, **kwargs):
        self.ours, self.theirs, self.args, self.rate, self.kwargs = ours, theirs, args, rate, kwargs
        self.linear = issubclass(ours, nn.Linear)

    def pair(self, seed=0, rate=True):
        """The layer of either, from one seed each, and the generator's state behind it."""
        made = []
        for kind in (self.ours, self.theirs):
            torch.manual_seed(seed)
            layer = kind(*self.args, **self.kwargs)
            if rate and self.rate is not None:
                layer.set_prune_rate(self.rate)
            made += [layer, torch.get_rng_state()]
        return made

    def x(self):
        layer = self.pair()[0]
        return torch.randn((5, 3, layer.in_features) if self.linear else (2, layer.in_channels, 9, 9))

    def __str__(self):
        of = self.ours.__module__.rpartition(".")[2]
        return f"{of}-{self.ours.__name__}-{self.args}-{self.rate}".replace(" ", "")


CONV = dict(padding=1, stride=2, bias=False)
CASES = [
    Case(hidden_networks.SubnetConv, PlainSubnetConv, 3, 17, 3, rate=0.3, **CONV),
    Case(hidden_networks.SubnetConv, PlainSubnetConv, 8, 12, (1, 3), rate=0.9, groups=4, dilation=2),
    Case(hidden_networks.SubnetConv, PlainSubnetConv, 10, 1, 1, rate=1.0),
    Case(hidden_networks_mnist.SupermaskConv, PlainExampleConv, 3, 17, 3, 1, bias=False),
    Case(hidden_networks_mnist.SupermaskLinear, PlainExampleLinear, 63, 17, bias=False),
    Case(dnw.SparseConv, PlainSparseConv, 64, 80, 1, rate=0.1, bias=False),
    Case(dnw.SparseConv, PlainSparseConv, 3, 17, 3, rate=0.9, **CONV),
    Case(dnw.SparseConv, PlainSparseConv, 3, 17, 3, rate=0.0, **CONV),
    Case(dnw.DNW, PlainDNW, 0.95, 63, 17),
    Case(hydra.SubnetConv, PlainPopupConv, 3, 17, 3, 2, 1, rate=0.1),
    Case(hydra.SubnetLinear, PlainPopupLinear, 63, 17, rate=0.3),
    Case(torchao.SupermaskLinear, PlainSupermask, 0.9, 1, False, False, 63, 17),
    Case(torchao.SupermaskLinear, PlainSupermask, 0.1, 1, False, True, 100, 30, bias=False),
    Case(torchao.SupermaskLinear, PlainSupermask, 0.0, 1, True, False, 7, 3),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


@cases
def test_it_starts_as_theirs_from_a_seed(case):
    ours, after, theirs, expected = case.pair(seed=3, rate=False)
    assert torch.equal(after, expected)
    assert list(ours.state_dict()) == list(theirs.state_dict()) and isinstance(
        ours, nn.Linear if case.linear else nn.Conv2d
    )
    for name, p in theirs.named_parameters():
        q = dict(ours.named_parameters())[name]
        assert torch.equal(p, q) and p.requires_grad == q.requires_grad, name
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@cases
@pytest.mark.parametrize("trains", ["as it starts", "all"])
def test_forward_and_gradients_are_theirs(case, trains):
    ours, _, theirs, _ = case.pair()
    if trains == "all":
        for layer in (ours, theirs):
            layer.requires_grad_(True)
    x, other = (case.x().requires_grad_() for _ in range(2))
    with torch.no_grad():
        other.copy_(x)
    y, expected = ours(x), theirs(other)
    assert_close("y", y, expected, torch.float32)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    assert_close("dx", x.grad, other.grad, torch.float32)
    for (name, p), q in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert_close(name, q.grad, p.grad, torch.float32)
    assert torch.equal(ours.mask(), theirs.masked() != 0)


@cases
def test_state_dicts_go_either_way(case):
    (ours, _, theirs, _), x = case.pair(seed=1), case.x()
    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for p in source.parameters():
                p.normal_()
        assert target.load_state_dict(source.state_dict()) == ([], [])
        assert_close("y", ours(x), theirs(x), torch.float32)
    half = {name: t.bfloat16() for name, t in theirs.state_dict().items()}
    ours.load_state_dict(half, assign=True)
    assert ours.scores is None or ours.scores.dtype == torch.float32


@cases
def test_it_is_a_layer_like_any(case):
    """Copies, files, torch.compile, plain layers of torch, and this package's own helpers."""
    (layer, *_), x = case.pair(), case.x()
    expected = layer(x)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stored, weights_only=False),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        ek.share_selection(copy.deepcopy(layer)),
    ):
        assert torch.equal(twin(x), expected)
    plain = ek.materialize(nn.Sequential(copy.deepcopy(layer)))
    assert type(plain[0]) in (nn.Conv2d, nn.Linear) and not [n for n in vars(plain[0]) if "scores" in n or "rule" in n]
    assert plain.state_dict().keys() <= {"0.weight", "0.bias"}
    torch.testing.assert_close(plain(x), expected)
    model = nn.Sequential(layer)
    assert all(left.parameter == "bias" for left in ek.summary(model).left)
    ek.train_masks(model)
    assert model[0]._ranked.requires_grad
    frozen = copy.deepcopy(layer)
    frozen.freeze(keep_scores=True)
    assert torch.equal(frozen(x), expected)
    frozen.thaw()
    assert torch.equal(frozen(x), expected)
    with pytest.raises(ValueError, match=r"^model: it has no .* to convert, only .*, masked already"):
        ek.convert(model)


@cases
def test_its_signature_says_what_it_takes(case):
    names = list(inspect.signature(case.ours).parameters)
    plain = list(inspect.signature(nn.Linear if case.linear else nn.Conv2d).parameters)
    first = ["sparsity_level", "blocksize", "fixed_mask", "fixed_weight"] if case.theirs is PlainSupermask else []
    last = ["sparsity"] if issubclass(case.theirs, PlainExample) else []
    expected = ["prune_rate", "dim_in", "dim_out"] if case.theirs is PlainDNW else [*first, *plain, *last]
    assert names == expected


@pytest.mark.parametrize(
    ("layer", "rate"),
    [
        (lambda: hidden_networks.SubnetConv(3, 4, 3), "prune_rate"),
        (lambda: dnw.SparseConv(3, 4, 3), "prune_rate"),
        (lambda: hydra.SubnetConv(3, 4, 3), "k"),
        (lambda: hydra.SubnetLinear(3, 4), "k"),
    ],
)
def test_a_rate_that_was_never_set_is_missed(layer, rate):
    layer = layer()
    assert not hasattr(layer, rate) and "never set" in repr(layer)
    x = torch.randn((5, 3) if isinstance(layer, nn.Linear) else (2, 3, 9, 9))
    for call in (lambda: layer(x), layer.mask, layer.masked_weight, lambda: layer.train_mask() or layer.select()):
        with pytest.raises(AttributeError, match=rf"^{rate}: it was never set; call set_prune_rate"):
            call()
    layer.set_prune_rate(0.25)
    assert getattr(layer, rate) == 0.25 and layer(x).isfinite().all() and "never set" not in repr(layer)
    layer.freeze(keep_scores=True)
    assert getattr(layer, rate) == 0.25
    layer = copy.deepcopy(layer)
    layer.thaw()
    assert getattr(layer, rate) == 0.25


def test_hidden_networks_helpers_find_what_they_look_for():
    model = nn.Sequential(
        hidden_networks.SubnetConv(3, 7, 3), hidden_networks.SampleSubnetConv(7, 5, 3), nn.Conv2d(5, 2, 1)
    )
    for _, m in model.named_modules():
        if hasattr(m, "set_prune_rate"):
            m.set_prune_rate(0.3)
    assert model[0].prune_rate == model[0].keep == 0.3 and not hasattr(model[1], "set_prune_rate")
    for _, m in model.named_modules():  # freeze_model_weights
        if hasattr(m, "weight") and m.weight is not None:
            m.weight.requires_grad = False
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    assert [m.weight.grad for m in model] == [None] * 3 and model[0].scores.grad is not None
    for _, m in model.named_modules():  # freeze_model_subnet, unfreeze_model_weights
        if hasattr(m, "scores"):
            m.scores.requires_grad = False
        if hasattr(m, "weight") and m.weight is not None:
            m.weight.requires_grad = True
    model.zero_grad()
    model(torch.randn(2, 3, 9, 9)).sum().backward()
    assert model[0].scores.grad is None and torch.equal(model[0].weight.grad != 0, model[0].mask())
    assert torch.equal(model[0].clamped_scores, model[0].scores.abs())
    for refused in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"^prune_rate: the fraction of weights KEPT must be in \(0, 1\]"):
            model[0].set_prune_rate(refused)


def test_ours_and_theirs_train_alike():
    x = torch.randn(16, 3, 9, 9)
    losses = []
    for kind in (hidden_networks.SubnetConv, PlainSubnetConv):
        torch.manual_seed(0)
        model = nn.Sequential(kind(3, 8, 3, bias=False), nn.ReLU(), kind(8, 5, 3, bias=False), nn.Flatten())
        for m in (model[0], model[2]):
            m.set_prune_rate(0.5)
            m.weight.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        losses.append([])
        for _ in range(10):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][-1] < losses[0][0]


def test_a_sampled_subnet_is_drawn_as_often_and_trains_as_theirs():
    torch.manual_seed(0)
    layer, after = hidden_networks.SampleSubnetConv(3, 17, 3, bias=False), torch.get_rng_state()
    torch.manual_seed(0)
    theirs = PlainSubnetConv(3, 17, 3, bias=False)
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(layer.weight, theirs.weight) and torch.equal(layer.scores, theirs.scores)
    assert (
        layer.weight.requires_grad and layer.scores.requires_grad and list(layer.state_dict()) == ["weight", "scores"]
    )
    with torch.no_grad():
        layer.scores.mul_(5)
    assert torch.equal(layer.clamped_scores, layer.scores.sigmoid())
    x = torch.randn(2, 3, 9, 9)
    for mode in (True, False):
        layer.train(mode)
        assert not torch.equal(layer(x), layer(x))
        torch.manual_seed(1)
        y = layer(x)
        torch.manual_seed(1)
        drawn = layer.mask()
        weight, scores = (t.detach().clone().requires_grad_() for t in (layer.weight, layer.scores))
        expected = F.conv2d(x, weight * AsIs.apply(scores.sigmoid(), drawn))
        assert_close("y", y, expected, torch.float32)
        dy = torch.randn_like(y)
        dw, ds = torch.autograd.grad(y, (layer.weight, layer.scores), dy)
        assert_close("dW", dw, torch.autograd.grad(expected, weight, dy, retain_graph=True)[0], torch.float32)
        assert_close("dS", ds, torch.autograd.grad(expected, scores, dy)[0], torch.float32)
    draws = 1000
    kept = sum(layer.mask().float() for _ in range(draws)) / draws
    p = layer.clamped_scores.detach()
    assert ((kept - p) / (p * (1 - p) / draws).sqrt()).abs().max() < 5


def test_where_sampled_scores_start_is_of_the_class(monkeypatch):
    monkeypatch.setattr(hidden_networks.SampleSubnetConv, "score_init_constant", 0.5)
    torch.manual_seed(0)
    layer, after = hidden_networks.SampleSubnetConv(3, 4, 3), torch.get_rng_state()
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    assert torch.equal(after, torch.get_rng_state()) and torch.equal(plain.weight, layer.weight)
    assert (layer.scores == 0.5).all()
    layer.scores.data.zero_()
    layer.reset_scores()
    assert (layer.scores == 0.5).all()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7, 0.95])
def test_a_fixed_subnet_is_theirs(rate):
    torch.manual_seed(0)
    ours = hidden_networks.FixedSubnetConv(3, 17, 3, padding=1, bias=False)
    torch.manual_seed(0)
    theirs, x = PlainFixedConv(3, 17, 3, padding=1, bias=False), torch.randn(2, 3, 9, 9)
    assert torch.equal(ours.scores, theirs.scores) and torch.equal(ours.weight, theirs.weight)
    with pytest.raises(AttributeError):
        ours.set_subnet()
    for layer in (ours, theirs):
        layer.set_prune_rate(rate)
    for call in (lambda: ours(x), ours.get_subnet):
        with pytest.raises(RuntimeError, match=r"^set_subnet: this layer has no fixed mask yet; call set_subnet\(\)"):
            call()
    ours.set_subnet()
    theirs.set_subnet()
    assert ours.prune_rate == rate and torch.equal(ours.scores, theirs.scores) and not ours.scores.requires_grad
    assert torch.equal(ours.clamped_scores(), ours.scores)
    y, expected = ours(x), theirs(x)
    assert_close("y", y, expected, torch.float32)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy)
    assert_close("dW", ours.weight.grad, theirs.weight.grad, torch.float32)
    ours.weight.grad = None
    F.conv2d(x, ours.get_subnet(), padding=1).backward(dy)
    assert_close("dW", ours.weight.grad, theirs.weight.grad, torch.float32)
    assert list(ours.state_dict()) == ["weight", "scores"]
    again = hidden_networks.FixedSubnetConv(3, 17, 3, padding=1, bias=False)
    again.set_prune_rate(0.5)
    for state in (theirs.state_dict(), ours.state_dict()):
        assert again.load_state_dict(state) == ([], [])
        assert torch.equal(again(x), ours(x)) and torch.equal(again.scores, ours.scores)
        assert not again.scores.requires_grad
    assert theirs.load_state_dict(again.state_dict()) == ([], [])
    loose = PlainSubnetConv(3, 17, 3, padding=1, bias=False)  # a subnet that was trained: --pretrained
    again.load_state_dict(loose.state_dict())
    with pytest.raises(RuntimeError, match=r"^set_subnet: "):
        again(x)
    again.set_subnet()
    assert int(again.mask().sum()) == 459 - int(0.5 * 459)
    y = again(x)
    torch.testing.assert_close(ek.materialize(again)(x), y)


def test_the_sparsity_of_the_mnist_example_is_of_the_network():
    layers = (
        hidden_networks_mnist.SupermaskConv(1, 32, 3, 1, bias=False),
        nn.Flatten(),
        hidden_networks_mnist.SupermaskLinear(128, 10, bias=False, sparsity=0.2),
    )
    model = nn.Sequential(*layers)
    assert (layers[0].sparsity, layers[2].sparsity) == (0.5, 0.2)
    hidden_networks_mnist.set_sparsity(model, 0.3)
    assert layers[0].sparsity == layers[2].sparsity == 0.3 and int(layers[2].mask().sum()) == 1280 - int(0.7 * 1280)


def test_dnw_counts_to_the_weight():
    layer = dnw.SparseConv(64, 80, 1)
    for rate in (0.1, 0.2, 0.05, 0.0, 0.95):
        layer.set_prune_rate(rate)
        assert int(layer.mask().sum()) == 5120 - int(rate * 5120) and layer.prune_rate == rate
    with pytest.raises(ValueError, match=r"^prune_rate: the fraction of weights REMOVED must be in \[0, 1\), got 1"):
        layer.set_prune_rate(1)
    layer.rule = ek.TopK(0.25)
    assert layer.prune_rate == 0.75


@pytest.mark.parametrize("case", [c for c in CASES if c.ours in (dnw.SparseConv, dnw.DNW) and c.args[-1] != 3], ids=str)
def test_dnw_slices_of_a_weight_train_as_theirs(case):
    (ours, _, theirs, _), x = case.pair(), torch.randn(2, 40, 5, 5)
    for layer in (ours, theirs):
        F.conv2d(x, layer.get_weight()[:30, :40]).add(1).square().sum().backward()
    assert_close("dW", ours.weight.grad, theirs.weight.grad, torch.float32)
    assert (ours.weight.grad[:30, :40] != 0).all() and (ours.weight.grad[30:] == 0).all()


@pytest.mark.parametrize(
    ("kind", "kept"), [(hidden_networks.SubnetConv, 0.3), (hidden_networks.FixedSubnetConv, 0.7), (dnw.SparseConv, 0.7)]
)
def test_a_rate_may_be_assigned(kind, kept):
    layer = kind(10, 10, 1)
    layer.prune_rate = 0.3
    assert layer.prune_rate == 0.3 and int(layer.mask().sum()) == 100 * kept
    with pytest.raises(ValueError, match=r"^prune_rate: the fraction of weights (KEPT|REMOVED) must be in"):
        layer.prune_rate = 1.5
    assert layer.prune_rate == 0.3


def hydras_dense(state, k):
    """Dense weights out of a state_dict of theirs, as --save-dense writes them."""
    dense = dict(state)
    for name in [n for n in state if n.endswith("popup_scores")]:
        scores = dense.pop(name).abs()
        weight = name.replace("popup_scores", "weight")
        dense[weight] = dense[weight] * without_smallest(scores, int((1 - k) * scores.numel()))
    return dense


def test_hydras_three_modes():
    torch.manual_seed(0)
    model = nn.Sequential(hydra.SubnetConv(3, 8, 3), nn.ReLU(), nn.Flatten(), hydra.SubnetLinear(8 * 49, 5))
    x, target = torch.randn(16, 3, 9, 9), torch.randint(5, (16,))

    def each(name, trains):
        for _, m in model.named_modules():
            if getattr(m, name, None) is not None:
                getattr(m, name).requires_grad = trains

    def train():
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
        return {name.rpartition(".")[2] for name, p in model.named_parameters() if not torch.equal(p, before[name])}

    for k, trained in ((1.0, {"weight", "bias"}), (0.1, {"popup_scores"}), (0.1, {"weight", "bias"})):
        for _, m in model.named_modules():
            if hasattr(m, "set_prune_rate"):
                m.set_prune_rate(k)
        for name in ("weight", "bias", "popup_scores"):
            each(name, name in trained)
        if trained == {"popup_scores"}:  # --scaled-score-init
            for m in model.modules():
                if hasattr(m, "popup_scores"):
                    fan = nn.init._calculate_correct_fan(m.popup_scores, "fan_in")
                    m.popup_scores.data = math.sqrt(6 / fan) * m.weight.data / m.weight.data.abs().max()
        assert train() == trained
    state = model.state_dict()
    assert list(state) == [f"{i}.{name}" for i in (0, 3) for name in ("weight", "bias", "popup_scores")]
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 5))
    plain.load_state_dict(hydras_dense(state, 0.1))
    torch.testing.assert_close(plain(x), model(x))
    assert (plain[3].weight == 0).float().mean() == pytest.approx(0.9, abs=1e-3)
    assert torch.equal(model[0].w, model[0].masked_weight()) and model[0].w.requires_grad
    model[0].k = 0.5
    assert model[0].k == 0.5 and int(model[0].mask().sum()) == 108


def test_what_certified_training_assigns_stays_until_the_next_forward():
    (ours, _, theirs, _), x = CASES[-5].pair(), CASES[-5].x()
    for layer in (ours, theirs):
        layer.w = layer.weight * get_subnet(layer.popup_scores.abs(), layer.k)  # as its bounds do
        F.conv2d(x, layer.w.abs()).sum().backward()
    assert_close("dS", ours.popup_scores.grad, theirs.popup_scores.grad, torch.float32)
    with torch.no_grad():
        ours.popup_scores.neg_().add_(1)
    ours(x)
    assert torch.equal(ours.w, ours.masked_weight()) and not torch.equal(ours.w, theirs.w)
    ours.w = theirs.w
    assert "_w" not in vars(ours.materialize())


def test_hydras_scores_have_one_name():
    layer, x = hydra.SubnetLinear(63, 17), torch.randn(5, 63)
    layer.set_prune_rate(0.3)
    assert layer.scores is layer.popup_scores and dict(layer.named_parameters())["popup_scores"] is layer.scores
    assert "scores" not in dict(layer.named_parameters())
    replaced = nn.Parameter(torch.randn(17, 63))
    layer.popup_scores = replaced
    assert layer.scores is replaced
    layer.scores = nn.Parameter(torch.randn(17, 63))
    assert layer.popup_scores is layer.scores is not replaced
    optimizer = ek.optim.ScoreSGD(layer, lr=0.1, momentum=0.9)
    twin = copy.deepcopy(layer)
    other = torch.optim.SGD([twin.popup_scores], lr=0.1, momentum=0.9)
    for _ in range(3):
        for of, by in ((layer, optimizer), (twin, other)):
            of(x).square().sum().backward()
            by.step()
            by.zero_grad()
        assert layer._known_cut() is not None  # the step has found it
    torch.testing.assert_close(layer.popup_scores, twin.popup_scores)
    layer.reset_parameters()
    layer.half()
    assert layer.popup_scores.dtype == torch.float32 and layer.weight.dtype == torch.float16
    layer.float().freeze()
    assert layer.popup_scores is None and layer.scores is None
    assert list(layer.state_dict()) == ["weight", "bias", "mask_bits"]
    again = hydra.SubnetLinear(63, 17)
    assert again.load_state_dict(layer.state_dict()) == ([], []) and again.popup_scores is None
    assert torch.equal(again.mask(), layer.mask())


def test_fused_backward_trains_hydras_layers():
    torch.manual_seed(0)
    layer, x = hydra.SubnetLinear(63, 17), torch.randn(5, 63)
    layer.set_prune_rate(0.3)
    twin = copy.deepcopy(layer)
    fused = ek.optim.ScoreSGD(layer, lr=0.1, fused_backward=True)
    plain = torch.optim.SGD([twin.popup_scores], lr=0.1)
    for of, by in ((layer, fused), (twin, plain)):
        for _ in range(3):
            of(x).square().sum().backward()
            by.step()
            by.zero_grad()
    torch.testing.assert_close(layer.popup_scores, twin.popup_scores)


def test_a_fixed_subnet_keeps_its_mask_however_it_came():
    def made():
        layer = hidden_networks.FixedSubnetConv(3, 7, 3)
        layer.set_prune_rate(0.5)
        return layer

    read, frozen, dropped = made(), made(), made()
    theirs = PlainFixedConv(3, 7, 3)
    theirs.set_prune_rate(0.5)
    theirs.set_subnet()
    ek.load_checkpoint(read, {"state_dict": {f"module.{name}": t for name, t in theirs.state_dict().items()}})
    assert torch.equal(read.scores, theirs.scores) and not read.scores.requires_grad
    frozen.freeze(keep_scores=True)  # this package's own way: scores stay what they were
    dropped.freeze()
    for layer, names in ((read, ["scores"]), (frozen, ["scores", "mask_bits"]), (dropped, ["mask_bits"])):
        x, again = torch.randn(2, 3, 9, 9), made()
        assert list(layer.state_dict()) == ["weight", "bias", *names]
        assert again.load_state_dict(layer.state_dict()) == ([], [])
        assert torch.equal(again.mask(), layer.mask()) and torch.equal(again(x), layer(x))


@pytest.mark.filterwarnings("error")
def test_checkpoints_and_packed_files_know_hydras_scores(tmp_path):
    def made():
        model = nn.Sequential(hydra.SubnetConv(3, 8, 3), nn.Flatten(), hydra.SubnetLinear(8 * 49, 5))
        for m in (model[0], model[2]):
            m.set_prune_rate(0.3)
        return model

    model, other, x = made(), made(), torch.randn(2, 3, 9, 9)
    ours = {name.replace("popup_scores", "scores"): t for name, t in model.state_dict().items()}
    for saved in (model.state_dict(), {f"module.{name}": t for name, t in ours.items()}):
        other = made()
        loaded = ek.load_checkpoint(other, saved)
        assert not loaded.missing and not loaded.left and torch.equal(other(x), model(x))
    ek.save_packed(model, tmp_path / "masks.safetensors")
    assert (tmp_path / "masks.safetensors").stat().st_size < 0.6 * sum(p.nbytes for p in model.parameters())
    back = ek.load_packed(tmp_path / "masks.safetensors", made())
    assert torch.equal(back(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0, False, False), r"^blocksize: expected 1 or more, got 0"),
        ((0.5, 2.0, False, False), r"^blocksize: expected an int, got float"),
        ((1.5, 4, False, False), r"^sparsity_level: the fraction of weights REMOVED must be in \[0, 1\], got 1.5"),
        ((1.5, 1, False, False), r"^sparsity_level: the fraction of weights REMOVED must be in \[0, 1\], got 1.5"),
        (("0.5", 1, False, False), r"^sparsity_level: expected a float in \[0, 1\], got str"),
    ],
    ids=str,
)
def test_torchaos_layer_refuses_what_it_cannot_be(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        torchao.SupermaskLinear(*arguments, 7, 3)


def test_torchaos_layer_keeps_ties_and_never_nothing():
    layer = torchao.SupermaskLinear(0.9, 1, False, False, 30, 20)
    with torch.no_grad():
        layer.scores.copy_(torch.randint(0, 4, (20, 30)))
    assert torch.equal(layer.mask(), layer.scores == 3) and layer.blocksize == 1
    g = torch.randn(20, 30)
    layer.get_mask().backward(g)
    assert torch.equal(layer.scores.grad, g)
    layer = torchao.SupermaskLinear(1.0, 1, False, False, 30, 20)
    assert layer.sparsity_level == 1 - 1 / 600 and int(layer.mask().sum()) == 600 - round(
        0.01 * 100 * (1 - 1 / 600) * 599
    )


@pytest.mark.parametrize(("blocksize", "out", "into"), [(2, 20, 30), (4, 17, 63), (32, 100, 40), (8, 3, 5)])
@pytest.mark.parametrize("sparsity_level", [0.0, 0.5, 0.9, 1.0])
def test_torchaos_layer_with_a_score_for_a_square_of_weights(blocksize, out, into, sparsity_level):
    layer, x = torchao.SupermaskLinear(sparsity_level, blocksize, False, False, into, out), torch.randn(5, into)
    assert isinstance(layer, torchao.SupermaskLinear) and layer.blocksize == blocksize
    tiles = layer.scores.shape
    assert tiles == (-(-out // blocksize), -(-into // blocksize))
    if sparsity_level == 0.9:  # ties at the percentile
        with torch.no_grad():
            layer.scores.copy_(torch.randint(0, 3, tiles))
    level = min(sparsity_level, 1 - 1 / tiles.numel())
    threshold = layer.scores.flatten().kthvalue(1 + round(0.01 * 100 * level * (tiles.numel() - 1))).values
    kept = (layer.scores >= threshold).float()
    mask = torch.kron(kept, torch.ones(blocksize, blocksize))[:out, :into]
    assert torch.equal(layer.get_mask(), mask)
    y, dy = layer(x), torch.randn(5, out)
    assert torch.equal(y, nn.functional.linear(x, layer.weight * mask, layer.bias))
    y.backward(dy)
    everywhere = torch.zeros(tiles[0] * blocksize, tiles[1] * blocksize)
    everywhere[:out, :into] = dy.T @ x
    squares = everywhere.view(tiles[0], blocksize, tiles[1], blocksize).sum((1, 3))
    assert_close("dW", layer.weight.grad, dy.T @ x, torch.float32)
    assert_close("dS", layer.scores.grad, squares, torch.float32)
    plain = torchao.SupermaskLinear.to_linear(layer)
    assert type(plain) is nn.Linear
    assert_close("y", plain(x), y, torch.float32)
    again = torchao.SupermaskLinear.from_linear(plain, level, blocksize)
    assert torch.equal(again.weight, plain.weight) and torch.equal(again.bias, plain.bias)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(again)(x), y)


def test_torchaos_layer_comes_from_and_becomes_a_linear():
    torch.manual_seed(0)
    linear, x = nn.Linear(30, 20), torch.randn(5, 30)
    state = torch.get_rng_state()
    layer = torchao.SupermaskLinear.from_linear(linear, sparsity_level=0.7)
    torch.set_rng_state(state)
    theirs = PlainSupermask(0.7, 1, False, False, 30, 20)
    theirs.load_state_dict({**theirs.state_dict(), **linear.state_dict()})
    assert torch.equal(layer.scores, theirs.scores) and torch.equal(layer.weight, linear.weight)
    assert layer.weight is not linear.weight and layer.bias is not linear.bias
    assert_close("y", layer(x), theirs(x), torch.float32)
    plain = torchao.SupermaskLinear.to_linear(layer)
    assert type(plain) is nn.Linear and plain.weight.requires_grad
    assert torch.equal(plain.weight != 0, layer.mask())
    half = torchao.SupermaskLinear.from_linear(nn.Linear(30, 20, bias=False).bfloat16())
    assert half.weight.dtype == torch.bfloat16 and half.scores.dtype == torch.float32 and half.bias is None
    with pytest.raises(TypeError, match=r"^linear: expected an nn.Linear, got Conv2d"):
        torchao.SupermaskLinear.from_linear(nn.Conv2d(3, 4, 1))


def test_torchaos_layer_under_autocast():
    layer, x = torchao.SupermaskLinear(0.7, 1, False, False, 63, 17), torch.randn(5, 63)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert_close("dS", layer.scores.grad, x.sum(0).expand(17, 63), torch.bfloat16)
    assert torch.equal(layer.scores.grad, layer.weight.grad)
