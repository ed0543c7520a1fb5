"""Layers with a mean-field posterior over their weights, trained by Flipout: Wen et al. 2018, arXiv 1803.04386.

Their defaults are those of the Flipout layers of TensorFlow Probability.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgepop_kernels as ek

from . import arguments

SIGMA_FLOOR = torch.finfo(torch.float32).eps


class VariationalLayer(nn.Module):
    """The base of variational layers: independent Gaussian weights N(mu, sigma^2) with sigma = eps + softplus(rho).
    Not constructed by itself.

    mu, rho      parameters of the weight's shape, started at N(0, 0.1^2) and N(-3, 0.1^2)
    bias         (out,), deterministic, started at 0; None where there is none
    prior_sigma  the weights' prior is N(0, prior_sigma^2)

    In train mode each forward draws the weights, in eval mode they are the means.
    """

    pixels: int  # dimensions behind the channels, over which a weight is the same
    mu: nn.Parameter
    rho: nn.Parameter
    bias: nn.Parameter | None

    def _start(self, shape, bias, prior_sigma, device, dtype):
        arguments.positive("prior_sigma", prior_sigma)
        self.prior_sigma = float(prior_sigma)
        self.mu = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.rho = nn.Parameter(torch.empty_like(self.mu))
        self.bias = nn.Parameter(self.mu.new_zeros(shape[0])) if bias else None
        nn.init.normal_(self.mu, 0, 0.1)
        nn.init.normal_(self.rho, -3, 0.1)

    @property
    def sigma(self) -> Tensor:
        return SIGMA_FLOOR + F.softplus(self.rho)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product that torch's layer of this kind computes."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it computes")

    def masked(self, rule: ek.GlobalTopK | ek.TopK) -> nn.Module:
        """An untrained masked layer of this one's geometry, device, dtype and memory format."""
        raise NotImplementedError(f"{type(self).__name__} does not say which masked layer takes its place")

    def check_input(self, x: Tensor) -> None:
        """Raises TypeError and ValueError for what ``product`` does not take."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it takes")

    def forward(self, x: Tensor) -> Tensor:
        """product(x, mu) + product(x * s_in, sigma * noise) * s_out + bias: one noise for the batch, one pair of random
        signs for each channel of each example, which decorrelates the examples' gradients (Flipout)."""
        self.check_input(x)
        y = self.product(x, self.mu, self.bias)
        if not self.training:
            return y
        signs_in, signs_out = self._signs(x), self._signs(y)
        perturbation = self.sigma * torch.randn_like(self.sigma)
        return y + self.product(x * signs_in, perturbation) * signs_out

    def _signs(self, like):
        shape = (*like.shape[: like.dim() - self.pixels], *[1] * self.pixels)
        return torch.randint(0, 2, shape, device=like.device, dtype=like.dtype).mul_(2).sub_(1)

    def kl(self) -> Tensor:
        """KL(N(mu, sigma^2) || N(0, prior_sigma^2)), summed over the weights: a scalar."""
        variance_ratio = (self.sigma / self.prior_sigma).square()
        return 0.5 * (variance_ratio + (self.mu / self.prior_sigma).square() - 1 - variance_ratio.log()).sum()


class VariationalLinear(VariationalLayer):
    """A linear layer with a mean-field posterior over its weights (``VariationalLayer``).

    mu, rho: (out_features, in_features). Input (..., in_features), output (..., out_features). Raises ValueError and
    TypeError.

    >>> layer, x = VariationalLinear(64, 10), torch.randn(5, 64)
    >>> bool((layer(x) == layer(x)).all())  # each forward draws
    False
    >>> bool((layer.eval()(x) == nn.functional.linear(x, layer.mu, layer.bias)).all())
    True
    """

    pixels = 0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        prior_sigma: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        arguments.whole("in_features", in_features, 1)
        arguments.whole("out_features", out_features, 1)
        self.in_features, self.out_features = in_features, out_features
        self._start((out_features, in_features), bias, prior_sigma, device, dtype)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def masked(self, rule: ek.GlobalTopK | ek.TopK) -> ek.FusedSubnetLinear:
        options = dict(device=self.mu.device, dtype=self.mu.dtype, rule=rule)
        return ek.FusedSubnetLinear(self.in_features, self.out_features, self.bias is not None, **options)

    def check_input(self, x: Tensor) -> None:
        arguments.real("x", x)
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected (..., {self.in_features}), got shape {tuple(x.shape)}")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class VariationalConv2d(VariationalLayer):
    """A two-dimensional convolution with a mean-field posterior over its weights (``VariationalLayer``).

    nn.Conv2d's arguments, then prior_sigma. mu, rho: (out_channels, in_channels / groups, kh, kw). A draw of the
    weights holds for all pixels of an example. Input (N, C, H, W) or (C, H, W). Raises ValueError and TypeError.

    >>> layer = VariationalConv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular")
    >>> layer(torch.randn(2, 3, 8, 8)).shape, layer.mu.shape
    (torch.Size([2, 8, 4, 4]), torch.Size([8, 3, 3, 3]))
    """

    pixels = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        prior_sigma: float = 1.0,
    ):
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            arguments.whole(name, value, 1)
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
            arguments.pair(name, value, 1)
        if not isinstance(padding, str):
            arguments.pair("padding", padding, 0)
        # torch's own reads the arguments, and refuses what does not go together; on "meta" it holds no weights.
        geometry = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        plain = nn.Conv2d(*geometry, device="meta")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, plain.kernel_size
        self.stride, self.padding, self.dilation = plain.stride, plain.padding, plain.dilation
        self.groups, self.padding_mode, self._borders = groups, padding_mode, plain._reversed_padding_repeated_twice
        self._start(plain.weight.shape, bias, prior_sigma, device, dtype)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._borders, mode=self.padding_mode), 0
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def masked(self, rule: ek.GlobalTopK | ek.TopK) -> ek.FusedSubnetConv:
        layer = ek.FusedSubnetConv(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
            self.mu.device,
            self.mu.dtype,
            rule=rule,
        )
        if self.mu.is_contiguous(memory_format=torch.channels_last) and not self.mu.is_contiguous():
            layer.to(memory_format=torch.channels_last)
        return layer

    def check_input(self, x: Tensor) -> None:
        arguments.real("x", x)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            expected = f"(N, C, H, W) or (C, H, W) with C = {self.in_channels}"
            raise ValueError(f"x: expected {expected}, got shape {tuple(x.shape)}")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"padding_mode={self.padding_mode}"
        )
