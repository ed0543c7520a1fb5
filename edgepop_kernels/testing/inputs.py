"""Inputs of tests and benchmarks: scores with every awkward value, tensors in every layout, drawn layer cases.

Everything follows from a seed and is made on the CPU, so that two devices can be given the same numbers.
"""

import random
from dataclasses import dataclass, fields, replace

import torch

from edgepop_kernels.rules import Frozen, Rule, Threshold, TopK

MIN_REDUCED = 16  # fewest elements of x and of y in a bfloat16 or float16 case, see tolerances.py


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _choose(values, shape, g):
    return torch.tensor(values)[torch.randint(len(values), shape, generator=g)]


def _nonfinite(shape, g):
    s = torch.randn(shape, generator=g)
    bad = _choose([torch.nan, -torch.nan, torch.inf, -torch.inf], shape, g)
    return torch.where(torch.rand(shape, generator=g) < 0.1, bad, s)


def _random_bits(shape, g):
    return torch.randint(-(2**31), 2**31, shape, generator=g).to(torch.int32).view(torch.float32)


# What a score tensor may hold. Ties are the rule, not the exception: bfloat16-like scores tie at every step, and
# hidden-networks can start from one constant.
SCORES = {
    "normal": lambda shape, g: torch.randn(shape, generator=g),
    "tied": lambda shape, g: (torch.randn(shape, generator=g) * 8).round() / 8,
    "few": lambda shape, g: _choose([-2.0, -1.0, -0.5, 0.5, 1.0, 3.0], shape, g),
    "equal": lambda shape, g: torch.full(shape, 0.25),
    "zeros": lambda shape, g: _choose([0.0, -0.0], shape, g),
    "signed_zeros": lambda shape, g: _choose([0.0, -0.0, 1e-3, -1e-3], shape, g),
    "nonfinite": _nonfinite,
    "all_nan": lambda shape, g: torch.full(shape, torch.nan),
    "denormal": lambda shape, g: torch.randn(shape, generator=g) * 1e-40,
    "bf16_grid": lambda shape, g: torch.randn(shape, generator=g).bfloat16().float(),
    "sorted": lambda shape, g: torch.randn(shape, generator=g).flatten().sort().values.view(shape),
}
# And what a selection may be given beside, in which there is no number to compute with.
RANKED = SCORES | {"random_bits": _random_bits}
FINITE_SCORES = tuple(kind for kind in SCORES if kind not in ("nonfinite", "all_nan"))


def scores(kind: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """float32 scores of ``shape``; ``kind`` is a key of RANKED."""
    return RANKED[kind](shape, generator(seed))


def _strided(t):
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), torch.nan, dtype=t.dtype, device=t.device)
    view = wide[..., 1::2]
    view.copy_(t)
    return view


def _transposed(t):
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


# The same values at other addresses; only "expanded" changes them: it repeats the first entry of dimension 0.
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": _strided,
    "transposed": _transposed,
    "expanded": lambda t: t[:1].expand(t.shape),
}


def layouts(dim: int, expanded: bool = True) -> list[str]:
    """The layouts a tensor of ``dim`` dimensions can take."""
    return [n for n in LAYOUTS if (dim == 4 or n != "channels_last") and (expanded or n != "expanded")]


def lay_out(t: torch.Tensor, layout: str) -> torch.Tensor:
    return LAYOUTS[layout](t)


HALF = TopK(0.5)


@dataclass(frozen=True)
class Draw:
    """The base of linear and convolution cases."""

    rule: Rule = HALF
    self_scored: bool = False  # scores=None: the weight is its own score
    scores: str = "normal"
    bias: bool = True
    dtype: torch.dtype = torch.float32  # of x and dy
    weight_dtype: torch.dtype = torch.float32
    trains_weight: bool = False
    x_layout: str = "contiguous"
    weight_layout: str = "contiguous"
    dy_layout: str = "contiguous"
    seed: int = 0

    def _tensor(self, shape, layout, salt, scale=1.0, dtype=torch.float32):
        t = torch.randn(shape, generator=generator(7919 * self.seed + salt)) * scale
        return lay_out(t.to(dtype), layout)

    def tensors(self):
        """(x, weight, scores, bias, dy) on the CPU; scores is the mask for Frozen and None for a self-scored layer."""
        shape = self.weight_shape
        fan_in = max(1, torch.Size(shape[1:]).numel())
        x = self._tensor(self.x_shape, self.x_layout, 1, dtype=self.dtype)
        weight = self._tensor(shape, self.weight_layout, 2, fan_in**-0.5, self.weight_dtype)
        bias = self._tensor(self.bias_shape, "contiguous", 3) if self.bias else None
        dy = self._tensor(self.y_shape, self.dy_layout, 4, dtype=self.dtype)
        s = lay_out(scores(self.scores, shape, self.seed), self.weight_layout)
        if isinstance(self.rule, Frozen):
            s = s > 0
        return x, weight, None if self.self_scored else s, bias, dy

    @property
    def bias_shape(self):
        return self.weight_shape[:1]

    def __str__(self):
        rule = type(self.rule).__name__ + "".join(f"-{v}" for v in vars(self.rule).values())
        scored = "self" if self.self_scored else self.scores
        layout = "-".join((self.x_layout, self.weight_layout, self.dy_layout))
        dtypes = "-".join(str(t)[6:] for t in (self.dtype, self.weight_dtype))
        flags = "-bias" * self.bias + "-dW" * self.trains_weight
        return f"{self.seed}-{self.shape_id}-{dtypes}-{rule}-{scored}-{layout}{flags}"


@dataclass(frozen=True)
class LinearCase(Draw):
    rows: tuple[int, ...] = (8,)
    in_features: int = 16
    out_features: int = 16

    @property
    def weight_shape(self):
        return self.out_features, self.in_features

    @property
    def x_shape(self):
        return *self.rows, self.in_features

    @property
    def y_shape(self):
        return *self.rows, self.out_features

    @property
    def shape_id(self):
        return f"{'x'.join(map(str, self.rows))}-{self.in_features}-{self.out_features}"


@dataclass(frozen=True)
class ConvCase(Draw):
    batch: int = 2
    in_channels: int = 4
    out_channels: int = 4
    size: tuple[int, int] = (8, 8)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def options(self):
        return dict(stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)

    @property
    def weight_shape(self):
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def x_shape(self):
        return self.batch, self.in_channels, *self.size

    @property
    def y_shape(self):
        return self.batch, self.out_channels, *self._out_size()

    def _out_size(self):
        geometry = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)

    @property
    def valid(self):
        """Whether torch takes it: reflected padding is shorter than the image, circular padding no longer."""
        room = {"reflect": -1, "circular": 0}.get(self.padding_mode, max(self.padding))
        fits = all(p <= n + room for p, n in zip(self.padding, self.size, strict=True))
        return fits and min(self._out_size()) > 0

    @property
    def shape_id(self):
        pairs = (self.size, self.kernel, self.stride, self.padding, self.dilation)
        size, kernel, stride, padding, dilation = (f"{a}x{b}" for a, b in pairs)
        mode = "" if self.padding_mode == "zeros" else f"-{self.padding_mode}"
        return (
            f"{self.batch}-{self.in_channels}-{size}-{self.out_channels}-k{kernel}-s{stride}-p{padding}-d{dilation}"
            f"-g{self.groups}{mode}"
        )


@dataclass(frozen=True)
class TransposedCase(ConvCase):
    """A transposed convolution; its padding is of zeros."""

    output_padding: tuple[int, int] = (0, 0)

    @property
    def options(self):
        return super().options | dict(output_padding=self.output_padding)

    @property
    def weight_shape(self):
        return self.in_channels, self.out_channels // self.groups, *self.kernel

    @property
    def bias_shape(self):
        return (self.out_channels,)

    def _out_size(self):
        of_axes = zip(
            self.size, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        )
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + extra + 1 for n, k, s, p, d, extra in of_axes)

    @property
    def valid(self):
        """Whether torch takes it: output_padding is less than a stride or a dilation."""
        most = (max(s, d) for s, d in zip(self.stride, self.dilation, strict=True))
        return min(self._out_size()) > 0 and all(e < m for e, m in zip(self.output_padding, most, strict=True))

    @property
    def shape_id(self):
        return f"{super().shape_id}-transposed-o{self.output_padding[0]}x{self.output_padding[1]}"


KEEPS = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _draw(r: random.Random, dim: int, seed: int) -> dict:
    rules = [TopK(r.choice(KEEPS)), TopK(r.choice(KEEPS), "raw")]
    rules += [Threshold(r.choice([0.3, 0.5, 0.8])), Threshold(0.5, "abs"), Threshold(0.1, "raw"), Frozen()]
    rule = r.choices(rules, weights=[8, 2, 1, 1, 1, 1])[0]
    self_scored = isinstance(rule, TopK) and r.random() < 0.2
    dtype = r.choices(DTYPES, weights=[3, 1, 1])[0]
    return dict(
        rule=rule,
        self_scored=self_scored,
        # Scores without a sign or a number have no gradient to compare; they are tested for their mask.
        scores=r.choices(FINITE_SCORES, weights=[6 if kind == "normal" else 1 for kind in FINITE_SCORES])[0],
        bias=r.random() < 0.5,
        dtype=dtype,
        weight_dtype=dtype if not self_scored and r.random() < 0.2 else torch.float32,
        trains_weight=self_scored or r.random() < 0.3,
        x_layout=r.choice(layouts(dim)),
        weight_layout=r.choice(layouts(dim, expanded=False)),
        dy_layout=r.choice(layouts(dim)),
        seed=seed,
    )


def _with_enough_outputs(case, field):
    if case.dtype == torch.float32:
        return case
    fewest = min(torch.Size(case.x_shape).numel(), torch.Size(case.y_shape).numel())
    if fewest >= MIN_REDUCED:
        return case
    grown = -(-MIN_REDUCED // fewest)
    return replace(case, **{field: (grown, *case.rows) if field == "rows" else grown * case.batch})


# Sizes on both sides of a vector (8, 16), a tile (32, 64) and a panel, primes, and one.
FEATURES = (1, 2, 3, 7, 8, 16, 17, 31, 33, 64, 65, 100, 127, 130, 200)
CHANNELS = (1, 2, 3, 5, 8, 16, 17, 32, 33, 40)


def linear_cases(count: int, seed: int = 0) -> list[LinearCase]:
    r = random.Random(seed)
    cases = []
    for i in range(count):
        rows = r.choice([(1,), (r.randint(2, 9),), (r.randint(10, 70),), (2, 3), (3, 1, 5), (67,), (129,)])
        case = LinearCase(**_draw(r, 2, i), rows=rows, in_features=r.choice(FEATURES), out_features=r.choice(FEATURES))
        cases.append(_with_enough_outputs(case, "rows"))
    return cases


def conv_cases(count: int, seed: int = 0) -> list[ConvCase]:
    r = random.Random(seed)
    cases = []
    while len(cases) < count:
        kind = r.choices(["dense", "grouped", "depthwise"], weights=[4, 2, 1])[0]
        groups = 1 if kind == "dense" else r.choice([2, 3, 4, 8])
        per_in = 1 if kind == "depthwise" else r.choice(CHANNELS) if kind == "dense" else r.choice([1, 2, 3, 8])
        per_out = (
            r.choice([1, 2]) if kind == "depthwise" else r.choice(CHANNELS) if kind == "dense" else r.choice([1, 3, 8])
        )
        kernel = r.choice([(1, 1), (3, 3), (3, 3), (3, 3), (5, 5), (1, 3), (3, 1), (2, 2), (7, 3)])
        mode = r.choices(["zeros", "reflect", "replicate", "circular"], weights=[7, 1, 1, 1])[0]
        case = ConvCase(
            **_draw(r, 4, len(cases)),
            batch=r.choice([1, 1, 2, 3, 5]),
            in_channels=groups * per_in,
            out_channels=groups * per_out,
            size=(r.randint(1, 18), r.randint(1, 18)),
            kernel=kernel,
            stride=r.choice([(1, 1), (1, 1), (2, 2), (1, 2), (3, 2)]),
            padding=r.choice([(0, 0), (1, 1), (1, 1), (2, 1), (3, 3)]),
            dilation=r.choice([(1, 1), (1, 1), (1, 1), (2, 2), (1, 3)]),
            groups=groups,
            padding_mode=mode,
        )
        if case.valid:
            cases.append(_with_enough_outputs(case, "batch"))
    return cases


def transposed_cases(count: int, seed: int = 0) -> list[TransposedCase]:
    """The convolutions that are drawn, transposed, where that makes an output."""
    r = random.Random(seed)
    cases = []
    for case in conv_cases(2 * count, seed):
        extra = dict(output_padding=r.choice([(0, 0), (0, 0), (1, 0), (1, 1), (0, 2)]), padding_mode="zeros")
        made = TransposedCase(**{field.name: getattr(case, field.name) for field in fields(case)} | extra)
        if made.valid:
            cases.append(_with_enough_outputs(made, "batch"))
    return cases[:count]
