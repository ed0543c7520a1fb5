"""The rows of the table: which layer, shape, dtype and pass; what each column of a row runs; what is checked first."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from columns import OUR_OPTIMIZER, OURS, in_memory_order, kth_score, model_of, on_backend, read
from measure import Contest
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.tolerances import assert_close
from edgepop_kernels.tuning import roofline

KEEP = 0.5
RULE = ek.TopK(KEEP)
LAYER_COLUMNS = ("fused", "GetSubnet", "GetSubnetFaster", "dense")
# Of a CPU's layers, for the share of packing: fused with a known cut on one row or pixel, and that for a single weight.
ONE_ROW, ONE_WEIGHT = "one row", "one weight"


class Setup(NamedTuple):
    """What a run was asked for."""

    device: torch.device
    backend: str  # of the fused column

    def on_its_backend(self, column, call):
        """The baselines and the dense layer are torch alone."""
        if column in OUR_OPTIMIZER and self.device.type == "cuda" and ek.backends()["cuda"] is None:
            return on_backend("cuda", call)  # which is Triton with steps of optimizers
        if column in OURS:
            return on_backend(self.backend, call)
        return on_backend("staged", call) if column == "staged" else call


def columns_of(row, device, compiled=False):
    """The columns that a row has on a device; compiled: with torch.compile of GetSubnetFaster."""
    if row.columns != LAYER_COLUMNS:
        return row.columns
    steps = ("packed",) if row.group == "linear" else ()
    if row.group == "train":
        steps = (*OUR_OPTIMIZER, "dense + fused SGD", *(("graphed",) if device.type != "cpu" else ()))
    return (*row.columns, "staged", *steps, *(("compile",) if compiled else ()))


def pass_name(dtype, backward):
    return f"{'f32' if dtype == torch.float32 else 'bf16'} {'fwd+bwd' if backward else 'fwd'}"


def autocast(dtype, device):
    """Reduced precision is autocast over float32 weights, as in training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)


def randn(shape, seed, device):
    """Drawn where it is used: the host takes seconds for the larger rows of a GPU."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def precision(layer, dtype, device):
    """Of the products of a layer (nn.Linear or nn.Conv2d), as the roofline names it."""
    if dtype != torch.float32:
        return "half"
    if device.type == "cpu":
        return "float32"
    switches = torch.backends.cuda.matmul if isinstance(layer, nn.Linear) else torch.backends.cudnn.conv
    return "tf32" if switches.fp32_precision == "tf32" else "float32"


def cost(layer, x_size, dtype):
    """The roofline's numbers of a dense layer (nn.Linear or nn.Conv2d) with scores, float32 weight, x of ``x_size``."""
    element = dtype.itemsize
    if isinstance(layer, nn.Linear):
        return roofline.linear(x_size.numel() // x_size[-1], layer.in_features, layer.out_features, element)
    return roofline.conv2d(
        tuple(x_size), tuple(layer.weight.shape), element, layer.stride, layer.padding, layer.dilation
    )


@dataclass(frozen=True)
class SelectRow:
    """The cuts of one or more score tensors in one call; warm hands in the cuts of an earlier call."""

    label: str
    sizes: tuple[int, ...]
    warm: bool
    kind: str = "normal"
    full: bool = False
    compiled = False
    group = "select"
    columns = ("fused", "GetSubnet", "GetSubnetFaster", "read")
    budget_s = 0.5
    launches = False

    def __str__(self):
        return f"{self.label} {self.kind} {'warm' if self.warm else 'cold'}"

    def contest(self, columns, setup):
        scores = [inputs.scores(self.kind, (n,), seed).to(setup.device) for seed, n in enumerate(self.sizes)]
        rules = [RULE] * len(scores)
        hints = setup.on_its_backend("fused", lambda: ek.select_all(scores, rules))() if self.warm else None
        calls = {
            "fused": setup.on_its_backend("fused", lambda: ek.select_all(scores, rules, hints)),
            # The baselines are timed up to the order and the threshold: writing their mask comes on top.
            "GetSubnet": lambda: [in_memory_order(s.abs()).sort() for s in scores],
            "GetSubnetFaster": lambda: [kth_score(s.abs(), KEEP) for s in scores],
            "read": read(scores),
            "cuda": on_backend("cuda", lambda: ek.select_all(scores, rules, hints)),
        }

        def check():
            for column in {"fused", "cuda"}.intersection(columns):
                for layer, (cut, s) in enumerate(zip(calls[column](), scores, strict=True)):
                    kept = oracle.mask(s, RULE)
                    last = s.abs()[kept].min()
                    index = (kept & (s.abs() == last)).nonzero()[-1].item()
                    found, expected = (cut.threshold.item(), cut.index.item()), (last.item(), index)
                    assert found == expected, f"{column}, layer {layer}: cut {found}, expected {expected}"

        work = roofline.select(sum(self.sizes))
        return Contest(check, {name: calls[name] for name in columns}, kernels=[(work, "float32")])


class GpuSelectRow(SelectRow):
    """With the CUDA C++ selection beside Triton's, where it was compiled: the faster one belongs first in "auto"."""

    @property
    def columns(self):
        compiled = ek.backends()["cuda"] is None
        return (*SelectRow.columns, *(("cuda",) if compiled else ()))


@dataclass(frozen=True)
class LayerRow:
    """One layer, forward, or forward with dx and the gradient of the scores (dense: of the weight)."""

    dtype: torch.dtype
    backward: bool
    full: bool = field(default=False, kw_only=True)
    compiled: bool = field(default=False, kw_only=True)
    columns = LAYER_COLUMNS
    budget_s = 0.3
    launches = False
    wants_dx = True
    memory_format = torch.contiguous_format

    def contest(self, columns, setup):
        device = setup.device
        x = randn(self.x_shape, 1, device).to(self.dtype, memory_format=self.memory_format)
        x.requires_grad_(self.backward and self.wants_dx)
        models = {column: model_of(column, self.template, KEEP, device) for column in columns}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            y = models["dense"](x.float())
        products = 1 + self.backward * (1 + self.wants_dx)  # y, dW and dx, all of one size
        flops = float(counter.get_total_flops()) * products
        dy = randn(y.shape, 2, device).to(self.dtype, memory_format=self.memory_format)
        (dense,) = models["dense"]
        layer = cost(dense, x.shape, self.dtype)
        work = [roofline.select(layer.weight), layer.forward()]
        work += [layer.input_grad()] if self.backward and self.wants_dx else []
        work += [layer.score_grad()] if self.backward else []
        kernels = [(w, precision(dense, self.dtype, device)) for w in work]

        calls = {
            column: setup.on_its_backend(column, self._pass(model, x, dy, device)) for column, model in models.items()
        }
        if device.type == "cpu":
            calls |= {ONE_ROW: self._of_one_row(setup), ONE_WEIGHT: replace(self, shape=self.least)._of_one_row(setup)}

        def check():
            for column in {"fused", "packed"}.intersection(columns):
                check_column(column)

        def check_column(column):
            (fused,) = models[column]
            got = calls[column]()
            if not self.backward:
                effective = fused.weight.double() * oracle.mask(fused.scores, RULE)
                assert_close("y", got[0], self.oracle(x.double(), effective, None), self.dtype)
                return
            want = oracle.answer(self.oracle, x, fused.weight, fused.scores, RULE, None, dy)
            wanted = {"y": want.y} | ({"dx": want.dx} if self.wants_dx else {}) | {"dscores": want.dscores}
            for out, (name, ref) in zip(got, wanted.items(), strict=True):
                assert_close(name, out, ref, self.dtype)

        return Contest(check, calls, flops, kernels)

    def _pass(self, model, x, dy, device):
        leaves = [*([x] if self.wants_dx else []), *(p for p in model.parameters() if p.requires_grad)]

        def forward():
            with torch.no_grad(), autocast(self.dtype, device):
                return (model(x),)

        def forward_backward():
            with autocast(self.dtype, device):
                y = model(x)
            return y, *torch.autograd.grad(y, leaves, dy)

        return forward_backward if self.backward else forward

    def _of_one_row(self, setup):
        model = model_of("fused", self.template, KEEP, setup.device)
        (layer,) = model
        layer._cuts.learn(setup.on_its_backend("fused", layer.select)(), layer.scores, layer.rule)
        x = randn(self.one_row, 1, setup.device).to(self.dtype).requires_grad_(self.backward and self.wants_dx)
        with torch.no_grad():
            dy = torch.ones_like(model(x.float()), dtype=self.dtype)
        return setup.on_its_backend("fused", self._pass(model, x, dy, setup.device))


@dataclass(frozen=True)
class LinearRow(LayerRow):
    shape: tuple[int, int, int]  # rows, in_features, out_features
    group = "linear"

    def __str__(self):
        return f"{'x'.join(map(str, self.shape))} {pass_name(self.dtype, self.backward)}"

    @property
    def x_shape(self):
        return self.shape[:2]

    @property
    def least(self):
        return 1, 1, 1

    def template(self):
        return nn.Sequential(nn.Linear(*self.shape[1:], bias=False))

    @property
    def one_row(self):
        return 1, self.shape[1]

    oracle = staticmethod(oracle.linear)


@dataclass(frozen=True)
class ConvRow(LayerRow):
    shape: tuple[int, int, int, int, int, int]  # batch, in_channels, size, out_channels, kernel, stride
    group = "conv"
    memory_format = torch.channels_last

    def __str__(self):
        batch, channels, size, out, kernel, stride = self.shape
        strided = f" s{stride}" if stride > 1 else ""
        return f"{batch}x{channels}x{size}x{size} {out}k{kernel}{strided} {pass_name(self.dtype, self.backward)}"

    @property
    def x_shape(self):
        batch, channels, size = self.shape[:3]
        return batch, channels, size, size

    @property
    def least(self):
        return 1, 1, 1, 1, 1, 1

    @property
    def one_row(self):
        return 1, self.shape[1], 1, 1

    @property
    def padding(self):
        return self.shape[4] // 2

    def template(self):
        _, channels, _, out, kernel, stride = self.shape
        layer = nn.Conv2d(channels, out, kernel, stride, self.padding, bias=False)
        return nn.Sequential(layer).to(memory_format=self.memory_format)

    def oracle(self, x, weight, bias):
        return oracle.conv2d(self.shape[5], self.padding)(x, weight, bias)


@dataclass(frozen=True)
class PatchRow(ConvRow):
    """A vision transformer's first layer: windows side by side in contiguous images; mostly nobody asks for dx."""

    wants_dx: bool = field(default=False, kw_only=True)
    memory_format = torch.contiguous_format
    padding = 0

    def __str__(self):
        return f"ViT patch embedding{' with dx' if self.wants_dx else ''} {ConvRow.__str__(self)}"

    @property
    def one_row(self):
        _, channels, _, _, kernel, _ = self.shape
        return 1, channels, kernel, kernel
