"""The one table of error bounds, and how an error is measured.

A result is compared in norm with float64 arithmetic on the same inputs: ``||out - ref|| / ||ref||``. Why these bounds:

float32    Products and sums round at 2^-24 = 6e-8. Over K terms of random sign the error of a sum grows as sqrt(K), so
           4e-6 at K = 5000; 2e-5 leaves a factor of 5 for one long serial chain, where it may grow faster.
bfloat16   x, W and the output each round once, by at most 2^-8 = 3.9e-3; products are exact in float32 and sums are
           float32. Three roundings: 1.17e-2. The root mean square, 2.8e-3, is what a correct kernel shows. A transposed
           product's output rounds once more where there is a bias: four, of independent signs, are 7.8e-3 in norm.
float16    The same three roundings at 2^-11: 1.5e-3, and some room for subnormals below 6e-5.

A bound in norm needs a norm: of one or two outputs that happen to cancel nothing can be said. Reduced-precision cases
therefore have at least ``inputs.MIN_REDUCED`` outputs.
"""

import torch

RELATIVE_BOUND = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    """``||out - ref|| / ||ref||`` in float64; ``||out||`` where ref is zero or empty; NaN if either holds a NaN."""
    out, ref = out.detach().double(), ref.detach().to(out.device).double()
    norm = ref.norm().item()
    return (out - ref).norm().item() / (norm if norm != 0 else 1.0)


def assert_close(name: str, out: torch.Tensor, ref: torch.Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Fail unless ``out`` is within ``factor`` times the bound of ``dtype`` (the dtype computed in) of ``ref``.

    NaN anywhere is a failure. The message names the first coordinate that is out of the bound and the worst one.
    """
    assert out.shape == ref.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    error, bound = relative_error(out, ref), factor * RELATIVE_BOUND[dtype]
    if not error <= bound:
        raise AssertionError(
            f"{name}: relative error {error:.3g}, bound {bound:.3g} ({dtype}); {_where(out, ref, bound)}"
        )


def assert_same_bits(name: str, out: torch.Tensor, ref: torch.Tensor) -> None:
    """Fail unless both hold the same values, NaN equal to NaN; for masks, and for runs that must repeat exactly."""
    assert out.shape == ref.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    assert out.dtype == ref.dtype, f"{name}: dtype {out.dtype}, expected {ref.dtype}"
    if torch.equal(out.nan_to_num(), ref.nan_to_num()) and torch.equal(out.isnan(), ref.isnan()):
        return
    wrong = (out != ref) & ~(out.isnan() & ref.isnan())
    first = tuple(wrong.nonzero()[0].tolist())
    raise AssertionError(
        f"{name}: {int(wrong.sum())} of {out.numel()} differ, first at {first}: {out[first]}, expected {ref[first]}"
    )


def _where(out: torch.Tensor, ref: torch.Tensor, bound: float) -> str:
    out, ref = out.detach().double(), ref.detach().to(out.device).double()
    # An element may be off by the norm's share of one element, so that zeros are not held to a relative error of zero.
    scale = max(ref.norm().item() / max(ref.numel(), 1) ** 0.5, torch.finfo(torch.float64).tiny)
    off = ((out - ref).abs() / scale).nan_to_num(nan=float("inf"))
    if off.dim() == 0:
        return f"value {out.item()}, expected {ref.item()}"
    first = tuple((off > bound).nonzero()[0].tolist())
    worst = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
    return "; ".join(
        f"{label} at {index}: {out[index].item()}, expected {ref[index].item()}"
        for label, index in (("first", first), ("worst", worst))
    )
