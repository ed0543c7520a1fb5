"""Lottery tickets by uncertainty: a mean-field posterior over every weight says which of them matter.

Train a network of ``VariationalLinear`` layers by the evidence lower bound, rank its weights by ``scores``, and train a
deterministic network from the posterior's *initial* means with only the best-ranked weights (``ticket``). Flipout:
Wen et al. 2018, arXiv 1803.04386. The defaults are those of the variational dense layers of TensorFlow Probability.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgepop_kernels as ek

SIGMA_FLOOR = torch.finfo(torch.float32).eps
CRITERIA = ("low_variance", "high_variance", "magnitude", "signal_to_noise", "random")


class VariationalLinear(nn.Module):
    """A linear layer whose weights are independent Gaussians N(mu, sigma^2), sigma = eps + softplus(rho).

    mu, rho: (out_features, in_features) parameters, started at N(0, 0.1^2) and N(-3, 0.1^2); bias (out_features,) is
    deterministic. Input (..., in_features), output (..., out_features). In eval mode the means are used.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, prior_sigma: float = 1.0):
        super().__init__()
        if not prior_sigma > 0:
            raise ValueError(f"prior_sigma: expected a number above 0, got {prior_sigma}")
        self.in_features, self.out_features, self.prior_sigma = in_features, out_features, float(prior_sigma)
        self.mu = nn.Parameter(torch.empty(out_features, in_features))
        self.rho = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        nn.init.normal_(self.mu, 0, 0.1)
        nn.init.normal_(self.rho, -3, 0.1)

    @property
    def sigma(self) -> Tensor:
        return SIGMA_FLOOR + F.softplus(self.rho)

    def forward(self, x: Tensor) -> Tensor:
        """x mu^T + ((x * s_in) (sigma * noise)^T) * s_out + bias: one noise for the batch, one pair of random signs for
        each example, which decorrelates the examples' gradients (Flipout)."""
        y = F.linear(x, self.mu, self.bias)
        if not self.training:
            return y
        signs_in, signs_out = _signs(x), _signs(y)
        perturbation = self.sigma * torch.randn_like(self.sigma)
        return y + F.linear(x * signs_in, perturbation) * signs_out

    def kl(self) -> Tensor:
        """KL(N(mu, sigma^2) || N(0, prior_sigma^2)), summed over the weights: a scalar."""
        variance_ratio = (self.sigma / self.prior_sigma).square()
        return 0.5 * (variance_ratio + (self.mu / self.prior_sigma).square() - 1 - variance_ratio.log()).sum()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _signs(like):
    return torch.randint(0, 2, like.shape, device=like.device, dtype=like.dtype).mul_(2).sub_(1)


def kl(model: nn.Module) -> Tensor:
    """The KL of all variational layers of ``model``, a scalar."""
    return sum(m.kl() for m in model.modules() if isinstance(m, VariationalLinear))


def negative_elbo(model: nn.Module, logits: Tensor, labels: Tensor, examples: int) -> Tensor:
    """Mean cross-entropy plus the KL of all variational layers over ``examples``, the size of the training set."""
    return F.cross_entropy(logits, labels) + kl(model) / examples


@torch.no_grad()
def scores(layer: VariationalLinear, criterion: str) -> Tensor:
    """What the criterion ranks, float32 of the weight's shape, the best highest.

    "low_variance" -sigma^2, "high_variance" sigma^2, "magnitude" |mu|, "signal_to_noise" |mu| / sigma, "random" a draw.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(map(repr, CRITERIA))}, got {criterion!r}")
    sigma, magnitude = layer.sigma, layer.mu.abs()
    return {
        "low_variance": lambda: -sigma.square(),
        "high_variance": sigma.square,
        "magnitude": lambda: magnitude,
        "signal_to_noise": lambda: magnitude / sigma,
        "random": lambda: torch.rand_like(magnitude),
    }[criterion]()


def initial_means(model: nn.Module) -> dict[str, Tensor]:
    """Copies of mu and bias of every variational layer by ``name.weight`` and ``name.bias``; take them before
    training."""
    means = {}
    for name, layer in model.named_modules():
        if isinstance(layer, VariationalLinear):
            means[f"{name}.weight"] = layer.mu.detach().clone()
            if layer.bias is not None:
                means[f"{name}.bias"] = layer.bias.detach().clone()
    return means


def ticket(
    posterior: nn.Sequential, means: dict[str, Tensor], criterion: str, keep: float, *, layerwise: bool = False
) -> nn.Sequential:
    """The deterministic network to train: ``means`` in linear layers of which the best ``keep`` is left.

    posterior: a trained Sequential with VariationalLinear layers; its other modules are taken as they are. One
    threshold holds for all layers, or with ``layerwise`` one for each. Masked weights get no gradient. keep 1 gives the
    unmasked network of the comparison. Raises ValueError.
    """
    rule = ek.TopK(keep, of="raw") if layerwise else ek.GlobalTopK(keep, of="raw")
    layers = []
    for name, module in posterior.named_children():
        if not isinstance(module, VariationalLinear):
            layers.append(module)
            continue
        options = dict(bias=module.bias is not None, device=module.mu.device, rule=rule)
        layer = ek.FusedSubnetLinear(module.in_features, module.out_features, **options)
        with torch.no_grad():
            layer.weight.copy_(means[f"{name}.weight"])
            layer.scores.copy_(scores(module, criterion))
            if module.bias is not None:
                layer.bias.copy_(means[f"{name}.bias"])
        layers.append(layer)
    return ek.train_weights(nn.Sequential(*layers))
