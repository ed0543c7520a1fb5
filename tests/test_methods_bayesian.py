"""Variational layers against the formulas of mean-field inference, and tickets drawn from a posterior."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.methods import bayesian
from edgepop_kernels.methods.bayesian import VariationalLinear


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
