"""The rows of the table: which layer, shape, dtype and pass; what each column of a row runs; what is checked first."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from columns import in_memory_order, kth_score, model_of, on_backend
from measure import Contest
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.tolerances import assert_close

KEEP = 0.5
RULE = ek.TopK(KEEP)
LAYER_COLUMNS = ("fused", "GetSubnet", "GetSubnetFaster", "dense")


class Setup(NamedTuple):
    """What a run was asked for."""

    device: torch.device
    backend: str  # of the fused column

    def on_its_backend(self, column, call):
        """The baselines and the dense layer are torch alone."""
        if column == "fused":
            return on_backend(self.backend, call)
        return on_backend("staged", call) if column == "staged" else call


def _pass_name(dtype, backward):
    return f"{'f32' if dtype == torch.float32 else 'bf16'} {'fwd+bwd' if backward else 'fwd'}"


def _autocast(dtype, device):
    """Reduced precision is autocast over float32 weights, as in training."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)


@dataclass(frozen=True)
class SelectRow:
    """The cuts of one or more score tensors in one call; warm hands in the cuts of an earlier call."""

    label: str
    sizes: tuple[int, ...]
    warm: bool
    kind: str = "normal"
    full: bool = False
    group = "select"
    columns = ("fused", "GetSubnet", "GetSubnetFaster", "read")
    budget_s = 0.5

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
            "read": lambda: [s.sum() for s in scores],
        }

        def check():
            for layer, (cut, s) in enumerate(zip(calls["fused"](), scores, strict=True)):
                kept = oracle.mask(s, RULE)
                last = s.abs()[kept].min()
                index = (kept & (s.abs() == last)).nonzero()[-1].item()
                found = cut.threshold.item(), cut.index.item()
                assert found == (last.item(), index), f"layer {layer}: cut {found}, expected {(last.item(), index)}"

        return Contest(check, {name: calls[name] for name in columns}, bytes_read=4.0 * sum(self.sizes))


@dataclass(frozen=True)
class LayerRow:
    """One layer, forward, or forward with dx and the gradient of the scores (dense: of the weight)."""

    dtype: torch.dtype
    backward: bool
    full: bool = field(default=False, kw_only=True)
    columns = LAYER_COLUMNS
    budget_s = 0.3

    def contest(self, columns, setup):
        device = setup.device
        memory_format = torch.channels_last if len(self.x_shape) == 4 else torch.contiguous_format
        x = torch.randn(self.x_shape, generator=inputs.generator(1)).to(device, self.dtype, memory_format=memory_format)
        x.requires_grad_(self.backward)
        models = {column: model_of(column, self.template, KEEP, device) for column in columns}
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            y = models["dense"](x.float())
        flops = float(counter.get_total_flops()) * (3 if self.backward else 1)  # y, dx and dW are products of one size
        dy = torch.randn(y.shape, generator=inputs.generator(2)).to(device, self.dtype, memory_format=memory_format)

        def call_of(column):
            model = models[column]
            leaves = [x, *(p for p in model.parameters() if p.requires_grad)]

            def forward():
                with torch.no_grad(), _autocast(self.dtype, device):
                    return (model(x),)

            def forward_backward():
                with _autocast(self.dtype, device):
                    y = model(x)
                return y, *torch.autograd.grad(y, leaves, dy)

            return setup.on_its_backend(column, forward_backward if self.backward else forward)

        calls = {column: call_of(column) for column in columns}

        def check():
            (layer,) = models["fused"]
            want = oracle.answer(self.oracle, x, layer.weight, layer.scores, RULE, None, dy)
            got = calls["fused"]()
            for name, out, ref in zip(("y", "dx", "dscores"), got, (want.y, want.dx, want.dscores), strict=False):
                assert_close(name, out, ref, self.dtype)

        return Contest(check, calls, flops)


@dataclass(frozen=True)
class LinearRow(LayerRow):
    shape: tuple[int, int, int]  # rows, in_features, out_features
    group = "linear"

    def __str__(self):
        return f"{'x'.join(map(str, self.shape))} {_pass_name(self.dtype, self.backward)}"

    @property
    def x_shape(self):
        return self.shape[:2]

    def template(self):
        return nn.Sequential(nn.Linear(*self.shape[1:], bias=False))

    oracle = staticmethod(oracle.linear)


@dataclass(frozen=True)
class ConvRow(LayerRow):
    shape: tuple[int, int, int, int, int, int]  # batch, in_channels, size, out_channels, kernel, stride
    group = "conv"

    def __str__(self):
        batch, channels, size, out, kernel, stride = self.shape
        strided = f" s{stride}" if stride > 1 else ""
        return f"{batch}x{channels}x{size}x{size} {out}k{kernel}{strided} {_pass_name(self.dtype, self.backward)}"

    @property
    def x_shape(self):
        batch, channels, size = self.shape[:3]
        return batch, channels, size, size

    def template(self):
        _, channels, _, out, kernel, stride = self.shape
        layer = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(layer).to(memory_format=torch.channels_last)

    def oracle(self, x, weight, bias):
        kernel, stride = self.shape[4:]
        return oracle.conv2d(stride, kernel // 2)(x, weight, bias)


def conv4():
    """Conv4 of Ramanujan et al. 2020 for 32x32 images: no biases, 2.4 million weights."""

    def pair(a, b):
        return (
            nn.Conv2d(a, b, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(b, b, 3, padding=1, bias=False),
            nn.ReLU(),
        )

    convs = (*pair(3, 64), nn.MaxPool2d(2), *pair(64, 128), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*convs, *_mlp(8192, 256, 256, 10)).to(memory_format=torch.channels_last)


def mlp():
    """The fully connected net 784-300-100-10 of Zhou et al. 2019, without biases."""
    return nn.Sequential(*_mlp(784, 300, 100, 10))


def _mlp(*features):
    layers = []
    for a, b in pairwise(features):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return layers[:-1]


@dataclass(frozen=True)
class TrainRow:
    """A whole training step: forward, cross entropy, backward, SGD with momentum on the scores (dense: the weights)."""

    label: str
    template: object
    x_shape: tuple[int, ...]
    dtype: torch.dtype
    full: bool = False
    group = "train"
    columns = LAYER_COLUMNS
    budget_s = 1.5

    def __str__(self):
        return f"{self.label} batch {self.x_shape[0]} {_pass_name(self.dtype, True)}"

    def contest(self, columns, setup):
        device = setup.device
        x = torch.randn(self.x_shape, generator=inputs.generator(1)).to(device)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        labels = torch.randint(10, self.x_shape[:1], generator=inputs.generator(2)).to(device)
        models = {column: model_of(column, self.template, KEEP, device) for column in columns}

        def call_of(column):
            model = models[column]
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)

            def step():
                optimizer.zero_grad()
                with _autocast(self.dtype, device):
                    loss = F.cross_entropy(model(x), labels)
                loss.backward()
                optimizer.step()

            return setup.on_its_backend(column, step)

        def check():
            def logits():
                with torch.no_grad(), _autocast(self.dtype, device):
                    return models["fused"](x)

            want = x.double()
            for m in models["fused"]:
                if hasattr(m, "scores"):
                    weight = m.weight.detach().double() * oracle.mask(m.scores, RULE)
                    want = F.linear(want, weight) if weight.dim() == 2 else F.conv2d(want, weight, padding=m.padding)
                else:
                    want = m(want)
            # Roundings of each masked layer add up in quadrature.
            depth = sum(hasattr(m, "scores") for m in models["fused"])
            out = setup.on_its_backend("fused", logits)()
            assert_close("logits", out, want, self.dtype, factor=depth**0.5)

        calls = {column: call_of(column) for column in columns}
        with FlopCounterMode(display=False) as counter:
            calls["dense"]()
        return Contest(check, calls, float(counter.get_total_flops()))
