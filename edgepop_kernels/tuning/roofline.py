"""The time that a kernel cannot be faster than: the bytes it must move, the operations it must do, the peaks of a
device.

Every operand is counted once, as if caches were perfect, and every result once; a multiplication with padding is not
counted. The floor is the longer of the two times at peak rate (Williams, Waterman, Patterson 2009, "Roofline"), of
several kernels the sum of theirs.
"""

from dataclasses import dataclass

from .table import Device

SCORE_BITS = 32
PACKED_BITS = 1
LEAST_PACKED = 16384  # scores for each multiprocessor of a GPU: what a block of selection reads


@dataclass(frozen=True)
class Work:
    """The work of one call of a kernel. flops: multiplications and additions; traffic: bytes read and written."""

    flops: float
    traffic: float


@dataclass(frozen=True)
class Peak:
    """The best that a device does. bandwidth: bytes/s of its memory, None where caches hold the operands; flops: FLOP/s
    by precision, as ``Problem`` names them; source: where the numbers are from."""

    bandwidth: float | None
    flops: dict[str, float]
    source: str

    def floor(self, work: Work, precision: str) -> float:
        """Seconds that ``work`` takes at least. Raises KeyError for a precision without a peak."""
        moving = work.traffic / self.bandwidth if self.bandwidth else 0.0
        return max(moving, work.flops / self.flops[precision] if work.flops else 0.0)


def _sheet(name, bandwidth, half, tf32, float32):
    flops = {"half": half * 1e12, "tf32": tf32 * 1e12, "float32": float32 * 1e12}
    return Peak(bandwidth * 1e12, flops, f"NVIDIA {name} data sheet, dense")


# By torch.cuda.get_device_name, from the data sheets: TB/s; TFLOP/s of the tensor cores in bfloat16 and tf32 without
# structured sparsity, of the vector units in float32.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": _sheet("A100", 1.555, 312, 156, 19.5),
    "NVIDIA A100-SXM4-80GB": _sheet("A100", 2.039, 312, 156, 19.5),
    "NVIDIA H100 PCIe": _sheet("H100", 2.0, 756, 378, 51),
    "NVIDIA H100 80GB HBM3": _sheet("H100", 3.35, 989, 494, 67),
    "NVIDIA H200": _sheet("H200", 4.8, 989, 494, 67),
    "NVIDIA B200": _sheet("HGX B200", 7.7, 2250, 1125, 75),
}


@dataclass(frozen=True)
class Layer:
    """A masked layer at one size of its input, in numbers of elements; built by ``linear`` and ``conv2d``.

    macs: products of a weight and an activation in the forward pass; each of the two gradients has as many. element,
    weight_element: bytes of an activation and of a weight, 1/8 where that is a sign. mask_bits: of a weight's score, or
    of its packed mask; 0 where the weight scores itself.
    """

    x: int
    y: int
    weight: int
    macs: int
    element: int
    weight_element: float = 4
    mask_bits: int = SCORE_BITS

    @property
    def _masked_weight(self):
        return self.weight * (self.weight_element + self.mask_bits / 8)

    def forward(self) -> Work:
        """y from x and W*M."""
        return Work(2.0 * self.macs, (self.x + self.y) * self.element + self._masked_weight)

    def input_grad(self) -> Work:
        """dx from dy and W*M: the same operands, the other way round."""
        return self.forward()

    def score_grad(self) -> Work:
        """dS, float32, from dy, x, W and S."""
        return Work(2.0 * self.macs, (self.x + self.y) * self.element + self._masked_weight + 4 * self.weight)

    def weight_grad(self) -> Work:
        """dW of a weight that trains, from dy and x; the mask where there is one to apply."""
        gradient = self.weight * (self.weight_element + self.mask_bits / 8)
        return Work(2.0 * self.macs, (self.x + self.y) * self.element + gradient)


def linear(rows: int, in_features: int, out_features: int, element: int, **others: int) -> Layer:
    """A linear layer on ``rows`` vectors; others: ``weight_element`` and ``mask_bits``."""
    macs = rows * in_features * out_features
    return Layer(rows * in_features, rows * out_features, in_features * out_features, macs, element, **others)


def conv2d(
    x_size: tuple[int, int, int, int],
    weight_size: tuple[int, int, int, int],
    element: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    **others: int,
) -> Layer:
    """A convolution of x (N, C, H, W) with a weight (O, C / groups, kh, kw); others as in ``linear``."""
    n, c, *size = x_size
    o, c_group, *kernel = weight_size
    axes = list(zip(size, kernel, stride, padding, dilation, strict=True))
    pixels, taps = 1, 1
    for axis in axes:
        outputs, inside = _outputs_and_taps(*axis)
        pixels, taps = pixels * outputs, taps * inside
    weights = o * c_group * kernel[0] * kernel[1]
    return Layer(n * c * size[0] * size[1], n * o * pixels, weights, n * o * c_group * taps, element, **others)


def _outputs_and_taps(size, kernel, stride, padding, dilation):
    """(outputs along an axis, pairs of output and tap that meet a pixel of the image)."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    inside = 0
    for tap in range(kernel):
        shift = tap * dilation - padding  # pixel = output * stride + shift, within 0 .. size - 1
        first = max(0, -(shift // stride))
        last = min(outputs - 1, (size - 1 - shift) // stride)
        inside += max(0, last - first + 1)
    return outputs, inside


def select(numel: int) -> Work:
    """The cuts of ``numel`` scores in all: one read of them, whatever the number of layers."""
    return Work(0.0, 4.0 * numel)


def planes(numel: int) -> Work:
    """Mask and signs beside cuts, 2 bits a weight, in a pass of their own."""
    return Work(0.0, numel * (4 + 2 * PACKED_BITS / 8))


def packing_pays(numel: int, device: Device, backward: bool) -> bool:
    """Whether products of layers of ``numel`` scores in all, just selected on a GPU, read packed masks, or the scores.

    Decided by bytes, of which each forward reads 4 a score or 1/8, and each gradient to the input again, as that of
    scores ranked by "abs" does. Selection knows neither the activations nor whether their gradient is wanted:
    ``backward`` is torch's grad mode, and a step is taken to have the first two. So a step saves 7.75 or more for 4.25
    that packing moves, evaluation 3.875: it reads scores. Nor do layers pack that are too small to give each
    multiprocessor work: there a launch is what counts.
    """
    saved = (2 if backward else 1) * numel * (SCORE_BITS - PACKED_BITS) / 8
    return numel >= LEAST_PACKED * device.multiprocessors and planes(numel).traffic < saved


def draw(numel: int) -> Work:
    """A Bernoulli mask, packed."""
    return Work(0.0, numel * (4 + PACKED_BITS / 8))


def stage(numel: int, element: int, weight_element: int = 4, mask_bits: int = SCORE_BITS) -> Work:
    """The effective weight in memory, of ``element`` bytes each."""
    return Work(0.0, numel * (weight_element + mask_bits / 8 + element))
