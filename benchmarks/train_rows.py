"""Whole training steps."""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from columns import OUR_OPTIMIZER, masked_layers, model_of
from measure import Contest
from rows import KEEP, LAYER_COLUMNS, RULE, autocast, cost, pass_name, precision, randn
from torch.utils.flop_counter import FlopCounterMode

import edgepop_kernels as ek
from edgepop_kernels.testing import oracle
from edgepop_kernels.testing.tolerances import RELATIVE_BOUND, assert_close, relative_error
from edgepop_kernels.tuning import roofline

SETTINGS = dict(lr=1e-3, momentum=0.9)


@dataclass(frozen=True)
class TrainRow:
    """A whole training step: forward, cross entropy, backward, SGD with momentum on the scores (dense: the weights).

    graphed          "fused" as one CUDA graph
    ScoreSGD         "fused" with it in torch.optim.SGD's place; fused_backward: and its option of that name; packed:
                     with weights of one magnitude as bits
    dense + fused SGD  "dense" with torch.optim.SGD(fused=True)

    inside  the network's part of a larger one: the gradient of its output is given, and that of its input wanted
    """

    label: str
    template: object
    x_shape: tuple[int, ...]
    dtype: torch.dtype
    full: bool = False
    compiled: bool = False
    inside: bool = False
    group = "train"
    columns = LAYER_COLUMNS
    budget_s = 1.5
    launches = True

    def __str__(self):
        rows = "" if self.inside else f" batch {self.x_shape[0]}"
        return f"{self.label}{rows} {pass_name(self.dtype, True)}"

    def contest(self, columns, setup):
        device = setup.device
        x = randn(self.x_shape, 1, device)
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
        x.requires_grad_(self.inside)
        labels = torch.arange(self.x_shape[0], device=device) % 10
        models = {column: model_of(column, self.template, KEEP, device) for column in columns}

        with torch.no_grad():
            dy = randn(models["dense"](x).shape, 2, device)

        def call_of(column):
            model = models[column]
            if column in OUR_OPTIMIZER:
                optimizer = ek.optim.ScoreSGD(model, **SETTINGS, fused_backward=column == "fused_backward")
            else:
                trained = [p for p in model.parameters() if p.requires_grad]
                optimizer = torch.optim.SGD(trained, fused=column == "dense + fused SGD", **SETTINGS)

            def step(x, labels):
                optimizer.zero_grad()
                x.grad = None
                with autocast(self.dtype, device):
                    y = model(x)
                    loss = y if self.inside else F.cross_entropy(y, labels)
                loss.backward(dy if self.inside else None)
                optimizer.step()
                return loss

            if column == "graphed":
                with ek.use_backend(setup.backend):
                    step = ek.graphed_step(step, model, optimizer, x, labels)
            return setup.on_its_backend(column, lambda: step(x, labels))

        def check():
            def logits(model):
                with torch.no_grad(), autocast(self.dtype, device):
                    return model(x)

            fused = models["fused"]
            plain = ek.materialize(copy.deepcopy(fused))
            exact = copy.deepcopy(plain).double()
            with torch.no_grad():
                for masked, *both in zip(masked_layers(fused), _products(plain), _products(exact), strict=True):
                    for layer in both:
                        layer.weight.copy_(masked.weight.double() * oracle.mask(masked.scores, RULE))
                want = exact(x.double())
            # Batch norms amplify: in an untrained ResNet-50 what x alone loses in bfloat16 is .06 to .19 of the logits.
            # So as near as torch's own layers are with these weights, within a quarter.
            torchs = relative_error(logits(plain), want)
            factor = max(1.0, 1.25 * torchs / RELATIVE_BOUND[self.dtype])
            assert_close("logits", setup.on_its_backend("fused", lambda: logits(fused))(), want, self.dtype, factor)

        kernels = self._kernels(models["dense"], x)
        calls = {column: call_of(column) for column in columns}
        with FlopCounterMode(display=False) as counter:
            calls["dense"]()
        return Contest(check, calls, float(counter.get_total_flops()), kernels)

    def _kernels(self, model, x):
        """Selection, and of each layer the three products, the first without a gradient to its input."""
        found = []

        def note(layer, inputs, output):
            layer_cost = cost(layer, inputs[0].shape, self.dtype)
            work = [roofline.select(layer_cost.weight), layer_cost.forward(), layer_cost.score_grad()]
            work += [layer_cost.input_grad()] if inputs[0].requires_grad else []
            found.extend((w, precision(layer, self.dtype, x.device)) for w in work)

        hooks = [layer.register_forward_hook(note) for layer in _products(model)]
        model(x)
        for hook in hooks:
            hook.remove()
        return found


def _products(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
