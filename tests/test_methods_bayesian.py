"""Variational layers against the formulas of mean-field inference, and tickets drawn from a posterior."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.methods import bayesian
from edgepop_kernels.methods.bayesian import VariationalConv2d, VariationalLinear

# nn.Conv2d's arguments behind kernel_size, for 4 channels in, 6 out
GEOMETRIES = {
    "plain": dict(),
    "strided": dict(stride=2, padding=1),
    "uneven": dict(stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "same": dict(padding="same", dilation=2),
    "valid": dict(padding="valid"),
    "grouped": dict(groups=2, padding=1, bias=False),
    "grouped, same": dict(groups=2, padding="same"),
    "circular": dict(padding=(1, 2), padding_mode="circular"),
    "reflected": dict(padding=2, padding_mode="reflect", stride=2),
    "replicated": dict(padding="same", padding_mode="replicate", groups=2),
}


def plain_conv(layer, geometry, weight, bias):
    """torch's own convolution of this geometry as a function, float64."""
    conv = nn.Conv2d(4, 6, (3, 2), **geometry).double()
    parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return lambda x: torch.func.functional_call(conv, parameters, x)


def moved(posterior):
    """The posterior as after a training: every parameter elsewhere."""
    with torch.no_grad():
        for p in posterior.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return posterior


def test_kl_is_the_analytic_one():
    """KL(N(mu, sigma^2) || N(0, p^2)) against torch.distributions in float64."""
    layer = VariationalLinear(7, 5, prior_sigma=0.5).double()
    posterior = torch.distributions.Normal(layer.mu, layer.sigma)
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 0.5)).sum()
    torch.testing.assert_close(layer.kl(), expected)


def test_starts_as_documented():
    layer = VariationalLinear(300, 200)
    for value, mean, deviation in ((layer.mu, 0, 0.1), (layer.rho, -3, 0.1)):
        assert abs(value.mean().item() - mean) < 0.003 and abs(value.std().item() / deviation - 1) < 0.02
    torch.testing.assert_close(layer.sigma, torch.log1p(layer.rho.exp()) + torch.finfo(torch.float32).eps)


def test_flipout_has_the_moments_of_the_posterior():
    """E[y] = x mu^T + b and Var[y] = x^2 (sigma^2)^T; two examples of a batch are uncorrelated (Flipout)."""
    layer = VariationalLinear(6, 3).double()
    with torch.no_grad():
        layer.rho.add_(2)
        layer.bias.normal_()
    x = torch.randn(1, 6).double().expand(2, 6)
    draws = torch.stack([layer(x) for _ in range(20_000)]).detach()
    mean = F.linear(x[:1], layer.mu, layer.bias)
    variance = F.linear(x[:1].square(), layer.sigma.square())
    assert ((draws.mean((0, 1)) - mean).abs() < 5 * (variance / 40_000).sqrt()).all()
    assert ((draws.var((0, 1)) / variance - 1).abs() < 0.05).all()
    centred = draws - mean
    assert ((centred[:, 0] * centred[:, 1]).mean(0).abs() < 5 * variance / 20_000**0.5).all()
    assert torch.equal(layer.eval()(x[:1]), mean)


def test_flipout_is_its_equation():
    """y = x mu^T + ((x * s_in) (sigma * e)^T) * s_out + b (Wen et al. 2018, equation 4), and its gradients by hand:
    with h = x * s_in and g = dy * s_out, dmu = dy^T x, dsigma = e * g^T h, dx = dy mu + (g (sigma * e)) * s_in."""
    layer = VariationalLinear(6, 3).double()
    x, dy = torch.randn(4, 6).double().requires_grad_(), torch.randn(4, 3).double()
    torch.manual_seed(5)
    y = layer(x)
    y.backward(dy)
    torch.manual_seed(5)  # the same draws, in the same order
    s_in, s_out = (torch.randint(0, 2, shape).double() * 2 - 1 for shape in ((4, 6), (4, 3)))
    e = torch.randn(3, 6, dtype=torch.float64)
    mu, rho, sigma = layer.mu.detach(), layer.rho.detach(), layer.sigma.detach()
    h, g, perturbation = x.detach() * s_in, dy * s_out, sigma * e
    torch.testing.assert_close(y, x @ mu.t() + (h @ perturbation.t()) * s_out + layer.bias)
    torch.testing.assert_close(layer.mu.grad, dy.t() @ x.detach())
    torch.testing.assert_close(layer.rho.grad, e * (g.t() @ h) / (1 + (-rho).exp()))  # dsigma / drho = sigmoid(rho)
    torch.testing.assert_close(layer.bias.grad, dy.sum(0))
    torch.testing.assert_close(x.grad, dy @ mu + (g @ perturbation) * s_in)


def test_the_lower_bound_is_its_equation():
    """Mean cross-entropy + KL / N; dKL / dmu = mu / p^2, dKL / dsigma = sigma / p^2 - 1 / sigma."""
    layer = VariationalLinear(6, 3, prior_sigma=0.5).double().eval()
    x, labels = torch.randn(4, 6).double(), torch.tensor([0, 2, 1, 1])
    logits = layer(x)
    loss = bayesian.negative_elbo(layer, logits, labels, examples=100)
    assert loss.item() == pytest.approx((F.cross_entropy(logits, labels) + layer.kl() / 100).item())
    dmu, drho = torch.autograd.grad(layer.kl(), (layer.mu, layer.rho))
    torch.testing.assert_close(dmu, layer.mu / 0.25)
    torch.testing.assert_close(drho, (layer.sigma / 0.25 - 1 / layer.sigma) * layer.rho.sigmoid())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


def test_criteria():
    layer = VariationalLinear(4, 3)
    sigma, mu = layer.sigma.detach(), layer.mu.detach()
    expected = {
        "low_variance": -sigma.square(),
        "high_variance": sigma.square(),
        "magnitude": mu.abs(),
        "signal_to_noise": mu.abs() / sigma,
    }
    for criterion, value in expected.items():
        torch.testing.assert_close(bayesian.scores(layer, criterion), value)
    with pytest.raises(ValueError, match=r"^criterion: ."):
        bayesian.scores(layer, "entropy")
    with pytest.raises(ValueError, match=r"^prior_sigma: ."):
        VariationalLinear(4, 3, prior_sigma=0.0)


def test_a_ticket_starts_at_the_initial_means_and_trains_only_what_it_keeps():
    posterior = nn.Sequential(VariationalLinear(6, 8), nn.ReLU(), VariationalLinear(8, 3, bias=False))
    means = bayesian.initial_means(posterior)
    with torch.no_grad():
        for p in posterior.parameters():
            p.add_(torch.randn_like(p))
    ticket = bayesian.ticket(posterior, means, "low_variance", 0.25, layerwise=True)
    expected = ek.mask(-posterior[0].sigma.detach().square(), ek.TopK(0.25, "raw"))
    assert torch.equal(ticket[0].mask(), expected) and torch.equal(ticket[0].weight, means["0.weight"])
    assert ticket[2].bias is None and torch.equal(ticket[2].weight, means["2.weight"])
    ticket(torch.randn(5, 6)).square().sum().backward()
    assert not ticket[0].weight.grad[~expected].any() and ticket[0].weight.grad[expected].any()
    whole = bayesian.ticket(posterior, means, "low_variance", 1.0)
    x = torch.randn(5, 6)
    torch.testing.assert_close(whole[0](x), F.linear(x, means["0.weight"], means["0.bias"]))


def test_one_threshold_holds_for_all_layers():
    """The seed masks what exceeds "a certain threshold on variance": one for the whole network."""
    posterior = nn.Sequential(VariationalLinear(6, 8), nn.ReLU(), VariationalLinear(8, 3))
    with torch.no_grad():
        posterior[2].rho.add_(3)
    ticket = bayesian.ticket(posterior, bayesian.initial_means(posterior), "high_variance", 0.3)
    assert ticket[2].mask().float().mean() > 0.8
    assert ticket[0].mask().sum() + ticket[2].mask().sum() == ek.kept_count(6 * 8 + 8 * 3, 0.3)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_a_convolution_takes_every_geometry(geometry):
    """In eval mode it is torch's convolution with the means, for a batch and for one image."""
    layer = moved(VariationalConv2d(4, 6, (3, 2), **geometry).double()).eval()
    assert layer.mu.shape == layer.rho.shape == nn.Conv2d(4, 6, (3, 2), **geometry).weight.shape
    x = torch.randn(3, 4, 7, 9).double()
    expected = plain_conv(layer, geometry, layer.mu, layer.bias)
    torch.testing.assert_close(layer(x), expected(x))
    torch.testing.assert_close(layer(x[0]), expected(x[0]))
    assert layer.train()(x[0]).shape == expected(x[0]).shape


@pytest.mark.parametrize("name", ["strided", "grouped", "circular"])
def test_flipout_of_a_convolution_has_the_moments_of_the_posterior(name):
    """E[y] = conv(x, mu) + b, Var[y] = conv(x^2, sigma^2), and two examples of a batch are uncorrelated."""
    geometry, count = GEOMETRIES[name], 8000
    layer = moved(VariationalConv2d(4, 6, (3, 2), **geometry).double())
    x = torch.randn(1, 4, 4, 3).double()
    pair = x.expand(2, 4, 4, 3)
    draws = torch.vmap(lambda _: layer(pair), randomness="different")(torch.zeros(count)).detach()
    mean = plain_conv(layer, geometry, layer.mu, layer.bias)(x).detach()
    nothing = None if layer.bias is None else torch.zeros_like(layer.bias)
    variance = plain_conv(layer, geometry, layer.sigma.square(), nothing)(x.square()).detach()
    assert ((draws.mean((0, 1)) - mean[0]).abs() < 5 * (variance[0] / count).sqrt()).all()
    assert ((draws.var((0, 1)) / variance[0] - 1).abs() < 5 * (2 / count) ** 0.5).all()
    centred = draws - mean
    assert ((centred[:, 0] * centred[:, 1]).mean(0).abs() < 5 * variance[0] / count**0.5).all()


def test_a_draw_of_a_convolution_is_one_filter_for_all_pixels():
    """y = conv(x, mu + draw) + b with one draw for each example: (sigma e) * s_out s_in^T, and its gradient of rho."""
    layer = moved(VariationalConv2d(4, 6, (3, 2), groups=2, padding=1).double())
    x, dy = torch.randn(3, 4, 5, 5).double(), torch.randn(3, 6, 5, 6).double()
    torch.manual_seed(5)
    y = layer(x)
    y.backward(dy)
    torch.manual_seed(5)  # the same draws, in the same order
    s_in, s_out = (torch.randint(0, 2, (3, channels, 1, 1)).double() * 2 - 1 for channels in (4, 6))
    e = torch.randn(6, 2, 3, 2, dtype=torch.float64)
    rho = layer.rho.detach().clone().requires_grad_()
    draw = (torch.finfo(torch.float32).eps + F.softplus(rho)) * e
    expected = []
    for one, flip_in, flip_out in zip(x, s_in, s_out, strict=True):
        flips = flip_in.view(2, 1, 2, 1, 1).expand(2, 3, 2, 1, 1).reshape(6, 2, 1, 1)  # a filter sees its group alone
        weight = layer.mu.detach() + draw * flip_out.view(6, 1, 1, 1) * flips
        expected.append(F.conv2d(one, weight, layer.bias.detach(), padding=1, groups=2))
    expected = torch.stack(expected)
    torch.testing.assert_close(y, expected)
    expected.backward(dy)
    torch.testing.assert_close(layer.rho.grad, rho.grad)


@pytest.mark.parametrize(("kind", "sizes"), [(VariationalLinear, (5, 7)), (VariationalConv2d, (4, 6, 3))])
def test_gradients_of_the_kl_are_those_of_its_formula(kind, sizes):
    """log(p / sigma) + (sigma^2 + mu^2) / (2 p^2) - 1 / 2, differentiated in float64."""
    layer = moved(kind(*sizes, prior_sigma=0.5).double())
    mu, rho = (t.detach().clone().requires_grad_() for t in (layer.mu, layer.rho))
    sigma, p = torch.finfo(torch.float32).eps + torch.log1p(rho.exp()), layer.prior_sigma
    expected = (torch.log(p / sigma) + (sigma**2 + mu**2) / (2 * p**2) - 0.5).sum()
    expected.backward()
    torch.testing.assert_close(bayesian.kl(nn.Sequential(layer, nn.ReLU())), expected)
    layer.kl().backward()
    torch.testing.assert_close(layer.mu.grad, mu.grad)
    torch.testing.assert_close(layer.rho.grad, rho.grad)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
def test_the_ticket_of_a_convolution_is_the_masked_one(geometry):
    """The root itself is a variational layer here; its ticket is torch's convolution with W * M, and trains W there."""
    layer = VariationalConv2d(4, 6, (3, 2), **geometry)
    means = bayesian.initial_means(layer)
    assert list(means) == (["weight"] if layer.bias is None else ["weight", "bias"])
    ticket = bayesian.ticket(moved(layer), means, "signal_to_noise", 0.4)
    assert type(ticket) is ek.FusedSubnetConv
    scores = layer.mu.detach().abs() / layer.sigma.detach()
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(descending=True)[: ek.kept_count(scores.numel(), 0.4)]] = True
    mask = mask.view_as(scores)
    assert torch.equal(ticket.mask(), mask) and torch.equal(ticket.weight, means["weight"])
    x, weight = torch.randn(3, 4, 7, 9), means["weight"].double().requires_grad_()
    bias = means["bias"].double() if "bias" in means else None
    expected = plain_conv(layer, geometry, weight * mask, bias)(x.double())
    y = ticket(x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    dy = torch.randn_like(y)
    y.backward(dy)
    expected.backward(dy.double())
    torch.testing.assert_close(ticket.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)


class Residual(nn.Module):
    """Layers at several depths, one used twice, a plain one, buffers, and a forward of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(VariationalConv2d(3, 4, 3, padding=1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
        self.block = VariationalConv2d(4, 4, 3, padding="same", groups=2)
        self.again = self.block
        self.shortcut = nn.Conv2d(3, 4, 1)
        self.heads = nn.ModuleDict({"small": VariationalLinear(4, 2), "large": VariationalLinear(4, 5, bias=False)})
        self.order = [self.heads["large"], self.heads["small"]]  # a list: nn.Module does not see into it

    def forward(self, x):
        y = self.stem(x) + self.shortcut(x)
        y = y + self.again(self.block(y).relu())
        return torch.cat([head(y.mean((2, 3))) for head in self.order], 1)


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_ticket_is_the_network_with_the_initial_means_under_the_masks(layerwise):
    """Whatever its shape: the posterior itself, its means set to W * M, is the same function in eval mode."""
    posterior = Residual()
    means = bayesian.initial_means(posterior)
    assert list(means) == [
        *("stem.0.weight", "stem.0.bias", "block.weight", "block.bias"),
        *("heads.small.weight", "heads.small.bias", "heads.large.weight"),
    ]
    x = torch.randn(8, 3, 6, 5)
    posterior(x)  # running statistics
    before = {name: t.clone() for name, t in moved(posterior).state_dict().items()}
    posterior.stem.eval()
    ticket = bayesian.ticket(posterior, means, "magnitude", 0.3, layerwise=layerwise)
    assert type(ticket) is Residual and ticket.again is ticket.block and ticket.order[0] is ticket.heads["large"]
    assert [m.training for m in ticket.modules()] == [m.training for m in posterior.modules()]
    assert not any(isinstance(m, bayesian.VariationalLayer) for m in [*ticket.modules(), *ticket.order])
    assert set(means) == {n for n in ticket.state_dict() if n in means}  # the names are those of the ticket's state
    assert not {id(p) for p in ticket.parameters()} & {id(p) for p in posterior.parameters()}
    assert torch.equal(ticket.shortcut.weight, posterior.shortcut.weight)
    assert torch.equal(ticket.stem[1][0].running_mean, posterior.stem[1][0].running_mean)
    after = posterior.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)

    layers = {n: m for n, m in posterior.named_modules() if isinstance(m, bayesian.VariationalLayer)}
    magnitudes = {n: m.mu.detach().abs() for n, m in layers.items()}
    everything = torch.cat([m.flatten() for m in magnitudes.values()])
    for name, layer in layers.items():
        ranked = magnitudes[name].flatten() if layerwise else everything
        threshold = ranked.sort(descending=True).values[ek.kept_count(len(ranked), 0.3) - 1]
        mask = magnitudes[name] >= threshold
        assert torch.equal(ticket.get_submodule(name).mask(), mask)
        with torch.no_grad():
            layer.mu.copy_(means[f"{name}.weight"] * mask)
            if layer.bias is not None:
                layer.bias.copy_(means[f"{name}.bias"])
    torch.testing.assert_close(ticket.eval()(x), posterior.eval()(x), rtol=1e-4, atol=1e-5)


def test_a_ticket_trains_by_its_masks_wherever_its_layers_are():
    posterior = Residual()
    ticket = bayesian.ticket(moved(posterior), bayesian.initial_means(posterior), "low_variance", 0.5)
    ticket(torch.randn(8, 3, 6, 5)).square().sum().backward()
    for layer in (ticket.stem[0], ticket.block, *ticket.order):
        assert not layer.weight.grad[~layer.mask()].any() and layer.weight.grad.any()
    assert ticket.shortcut.weight.grad.any() and ticket.stem[1][0].weight.grad.any()


def test_a_ticket_leaves_other_masked_layers_as_they_are():
    """A layer that is masked already keeps its rule and its scores, and is not ranked with the rest."""
    masked = ek.FusedSubnetLinear(8, 8, rule=ek.GlobalTopK(0.5, of="raw"))
    posterior = nn.Sequential(VariationalLinear(6, 8), masked, VariationalLinear(8, 3))
    with torch.no_grad():
        masked.scores.fill_(1e6)
    ticket = bayesian.ticket(posterior, bayesian.initial_means(posterior), "magnitude", 0.5)
    assert ticket[1].rule == masked.rule and ticket[1].scores.requires_grad and not ticket[1].weight.requires_grad
    assert ticket[0].mask().sum() + ticket[2].mask().sum() == ek.kept_count(6 * 8 + 8 * 3, 0.5)


def test_a_ticket_has_the_hooks_of_its_posterior():
    """Those of a variational layer are called by the layer in its place, and see that one."""
    posterior = nn.Sequential(VariationalLinear(6, 8), nn.ReLU(), VariationalLinear(8, 3))
    calls = []
    posterior.register_forward_hook(lambda m, x, y: calls.append(("network", m)))
    posterior[0].register_forward_pre_hook(lambda m, x: calls.append(("before", m)))
    posterior[0].register_forward_pre_hook(lambda m, x, kw: calls.append(("before, by name", m)), with_kwargs=True)
    posterior[2].register_forward_hook(lambda m, x, y: calls.append(("after", m)))
    posterior[2].register_full_backward_hook(lambda m, dx, dy: calls.append(("backward", m)))
    ticket = bayesian.ticket(posterior, bayesian.initial_means(posterior), "magnitude", 0.5)
    ticket(torch.randn(5, 6)).sum().backward()
    names = ["before", "before, by name", "after", "network", "backward"]
    assert calls == list(zip(names, [ticket[0], ticket[0], ticket[2], ticket, ticket[2]], strict=True))


def test_a_ticket_lies_in_memory_as_its_posterior_does():
    posterior = nn.Sequential(VariationalConv2d(3, 4, 3), nn.ReLU()).to(memory_format=torch.channels_last)
    ticket = bayesian.ticket(posterior, bayesian.initial_means(posterior), "magnitude", 0.5)
    for t in (ticket[0].weight, ticket[0].scores):
        assert t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    plain = bayesian.ticket(
        posterior.to(memory_format=torch.contiguous_format),
        {"0.weight": ticket[0].weight, "0.bias": ticket[0].bias},
        "magnitude",
        0.5,
    )
    assert torch.equal(plain[0].mask(), ticket[0].mask()) and plain[0].weight.is_contiguous()


def test_a_layer_that_a_ticket_leaves_without_a_weight_is_named():
    posterior = nn.Sequential(VariationalLinear(6, 8), nn.ReLU(), VariationalLinear(8, 3))
    with torch.no_grad():
        posterior[2].rho.add_(5)
    means = bayesian.initial_means(posterior)
    with pytest.warns(UserWarning, match=r"^keep 0\.3 by low_variance keeps nothing of 2 \(0 of 24\), "):
        assert not bayesian.ticket(posterior, means, "low_variance", 0.3)[2].mask().any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bayesian.ticket(posterior, means, "low_variance", 0.3, layerwise=True)[2].mask().any()


def test_a_ticket_has_the_dtype_of_its_posterior():
    posterior = nn.Sequential(VariationalConv2d(3, 4, 3, dtype=torch.bfloat16), nn.ReLU()).eval()
    ticket = bayesian.ticket(posterior, bayesian.initial_means(posterior), "low_variance", 0.5)
    assert ticket[0].weight.dtype == torch.bfloat16 and ticket[0].scores.dtype == torch.float32
    assert ticket(torch.randn(2, 3, 6, 6).bfloat16()).dtype == torch.bfloat16
