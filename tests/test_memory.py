"""What a training step holds beside its activations, in bytes per weight: docs/guide/memory.md has these numbers."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import edgepop_kernels as ek
from edgepop_kernels.backend import native

N = 512
ACTIVATIONS = 8 * N  # bytes of a row, and of what is as small: not counted


def held(packed, fused_backward):
    """Bytes per weight of all memory that the step knows when its optimizer is called, each storage once."""
    layer = ek.FusedSubnetLinear(N, N, bias=False)
    ek.init.signed_constant_(layer.weight)
    if packed:
        ek.pack_weights(layer)
    optimizer = ek.optim.ScoreSGD(layer, lr=0.1, momentum=0.9, fused_backward=fused_backward)
    x, found = torch.randn(1, N), {}

    def note(t):
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def backward():
        layer(x).sum().backward()

    backward()
    optimizer.step()
    optimizer.zero_grad()
    with saved_tensors_hooks(note, lambda t: t):
        backward()
    for t in [*layer.parameters(), *layer.buffers(), *(p.grad for p in layer.parameters() if p.grad is not None)]:
        note(t)
    for state in optimizer.state.values():
        for t in state.values():
            if isinstance(t, torch.Tensor):
                note(t)
    return sum(size for size in found.values() if size > ACTIVATIONS) / N**2


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize(
    ("packed", "fused_backward", "bytes_per_weight"),
    [(False, False, 16.25), (True, False, 12.375), (False, True, 12.25), (True, True, 8.375)],
)
def test_a_step_holds_no_more_than_the_guide_says(packed, fused_backward, bytes_per_weight):
    assert held(packed, fused_backward) == pytest.approx(bytes_per_weight, rel=1e-3)
