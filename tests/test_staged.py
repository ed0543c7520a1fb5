"""The staged backend: torch's own layers on a masked copy, and the kernel that writes the copy."""

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels import reference
from edgepop_kernels.testing import inputs, oracle
from edgepop_kernels.testing.guard import Guarded
from edgepop_kernels.testing.tolerances import assert_close, assert_same_bits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

RULES = [ek.TopK(0.3), ek.TopK(0.6, "raw"), ek.Threshold(0.5), ek.Frozen()]
CASES = [
    case
    for rule in RULES
    for dtype in (torch.float32, torch.bfloat16)
    for case in (
        inputs.LinearCase(rule=rule, dtype=dtype, rows=(2, 9), in_features=20, out_features=17),
        inputs.ConvCase(rule=rule, dtype=dtype, stride=(2, 1), padding=(1, 0), groups=2, x_layout="channels_last"),
        inputs.ConvCase(rule=rule, dtype=dtype, kernel=(1, 1), x_layout="strided", weight_layout="channels_last"),
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_staged(case):
    conv = isinstance(case, inputs.ConvCase)
    x, weight, scores, bias, dy = case.tensors()
    layer = oracle.conv2d(**case.options) if conv else oracle.linear
    expected = oracle.answer(layer, x, weight.contiguous(), scores, case.rule, bias, dy)
    x, weight, scores, bias = (
        t.detach().to(DEVICE).requires_grad_(t.is_floating_point()) for t in (x, weight, scores, bias)
    )
    with ek.use_backend("staged"):
        if conv:
            y = ek.masked_conv2d(x, weight, scores, case.rule, bias, **case.options)
        else:
            y = ek.masked_linear(x, weight, scores, case.rule, bias)
        y.backward(dy.to(DEVICE))
    results = [("y", y, expected.y), ("dx", x.grad, expected.dx), ("dweight", weight.grad, expected.dweight)]
    if scores.requires_grad:
        results.append(("dscores", scores.grad, expected.dscores))
    for name, out, ref in results:
        assert_close(name, out, ref, case.dtype)


def test_auto_never_stages():
    from edgepop_kernels.backend import implementation, staged

    assert implementation("masked_linear", torch.ones(2)) is not staged.masked_linear


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("of", ["abs", "raw", "bits"])
def test_stage_kernel(of, channels_last):
    pytest.importorskip("triton", reason="triton is not installed")
    from edgepop_kernels.backend.triton.stage import stage

    weight = torch.randn(7, 5, 3, 2, device=DEVICE)
    scores = inputs.scores("tied", (7, 5, 3, 2), 0).to(DEVICE)
    cut = reference.select([scores], [100], [of], None)[0] if of != "bits" else None
    keep = scores > 0 if of == "bits" else reference.mask(scores, cut, of)
    strided = scores.contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    workspace = Guarded(torch.full_like(weight, torch.nan).contiguous(memory_format=layout))
    stage(weight, reference.pack_mask(keep) if of == "bits" else strided, cut, of, workspace.tensor)
    workspace.check("workspace")
    assert_same_bits("workspace", workspace.tensor, weight * keep)
