"""The second stage of ``first_contact.py``: what all else rests on, on every backend, held to float64."""

from functools import partial

import networks
import torch
from columns import masked_layers, model_of
from journal import Skipped, main
from rows import KEEP, RULE, ConvRow, LinearRow, SelectRow, Setup, autocast, randn

import edgepop_kernels as ek
from edgepop_kernels.testing import oracle
from edgepop_kernels.testing.tolerances import assert_close


def smoke(worker):
    """Cuts, products with their gradients, and a step of Conv4."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # as products have it: the bounds of float32 are those
    device = torch.device(worker.job["device"])
    on_gpu = device.type == "cuda"
    backends = ("triton", "cuda", "staged", "reference") if on_gpu else ("native", "triton", "staged", "reference")
    dtypes = (torch.float32, torch.bfloat16)
    linear, conv = ((128, 1024, 1024), (16, 64, 32, 64, 3, 1)) if on_gpu else ((9, 70, 40), (2, 3, 8, 4, 3, 1))
    sizes = (1_000, 36_864, 2_359_296)[: None if on_gpu else 1]
    rows = {
        "select": [SelectRow("", sizes, warm, kind) for kind in ("normal", "few") for warm in (False, True)],
        "linear": [LinearRow(dtype, True, linear) for dtype in dtypes],
        "conv": [ConvRow(dtype, True, conv) for dtype in dtypes],
    }

    def checked(backend, check):
        if ek.backends()[backend] is not None:
            raise Skipped(ek.backends()[backend])
        check(Setup(device, backend))
        return "as float64 has it", None

    def of(group):
        def check(setup):
            for row in rows[group]:
                row.contest(("fused", "dense") if group != "select" else ("fused",), setup).check()

        return check

    checks = {group: of(group) for group in rows}
    for dtype in reversed(dtypes):
        checks[f"step of Conv4 in {dtype}"] = partial(step_of_conv4, dtype=dtype, images=32 if on_gpu else 1)
    # A process takes every fourth item: those of one backend.
    worker.run({f"{name}, {b}": partial(checked, b, check) for name, check in checks.items() for b in backends})


def step_of_conv4(setup, dtype, images, template=None):
    """Every layer's output and gradient in one training step, each as float64 has it of the input and the gradient that
    the layer was given: so that no ReLU decides otherwise in between. And the scores that the optimizer leaves."""
    model = model_of("fused", template or networks.conv4, KEEP, setup.device)
    layers = masked_layers(model)
    optimizer = torch.optim.SGD([layer.scores for layer in layers], lr=0.1)
    given = {}

    def note(layer, inputs, y):
        y.retain_grad()
        given[layer] = inputs[0].detach(), y

    for layer in layers:
        layer.register_forward_hook(note)

    def forward_backward():
        with autocast(dtype, setup.device):
            y = model(randn((images, 3, 32, 32), 1, setup.device))
        torch.nn.functional.cross_entropy(y, torch.arange(images, device=setup.device) % 10).backward()

    setup.on_its_backend("fused", forward_backward)()
    before = [layer.scores.detach().double() for layer in layers]
    setup.on_its_backend("fused", optimizer.step)()
    for n, layer in enumerate(layers):
        x, y = given[layer]
        product = oracle.linear if isinstance(layer, torch.nn.Linear) else oracle.conv2d(layer.stride, layer.padding)
        want = oracle.answer(product, x, layer.weight, before[n].float(), RULE, layer.bias, y.grad)
        assert_close(f"layer {n}, y", y, want.y, dtype)
        assert_close(f"layer {n}, gradient of the scores", layer.scores.grad, want.dscores, dtype)
        stepped = before[n] - 0.1 * layer.scores.grad.double()
        assert_close(f"layer {n}, scores after the step", layer.scores, stepped, torch.float32)


if __name__ == "__main__":
    main(smoke)
