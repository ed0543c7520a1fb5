"""The cost model: operations and bytes of small layers counted by hand, floors at given peaks."""

import itertools

import pytest

from edgepop_kernels.tuning import H200, roofline
from edgepop_kernels.tuning.roofline import Peak, Work

PEAK = Peak(bandwidth=100.0, flops={"half": 10.0}, source="made up")


AXES = [
    (size, kernel, stride, padding, dilation)
    for size, kernel, stride, padding, dilation in itertools.product((1, 5, 8), (1, 2, 3), (1, 2, 3), (0, 1, 4), (1, 3))
    if size + 2 * padding > dilation * (kernel - 1)
]


@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "dilation"), AXES)
def test_taps_inside_the_image_are_counted_one_by_one(size, kernel, stride, padding, dilation):
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    inside = sum(
        0 <= o * stride + k * dilation - padding < size for o, k in itertools.product(range(outputs), range(kernel))
    )
    layer = roofline.conv2d(
        (2, 6, size, 1),
        (4, 3, kernel, 1),
        element=2,
        stride=(stride, 1),
        padding=(padding, 0),
        dilation=(dilation, 1),
    )
    assert (layer.macs, layer.y) == (2 * 4 * 3 * inside, 2 * 4 * outputs)


def test_a_linear_layer_counts_each_operand_once():
    layer = roofline.linear(rows=3, in_features=5, out_features=7, element=2)
    activations, weights = 2 * (3 * 5 + 3 * 7), 5 * 7
    assert layer.forward() == layer.input_grad() == Work(2 * 3 * 5 * 7, activations + 8 * weights)
    assert layer.score_grad() == Work(2 * 3 * 5 * 7, activations + 12 * weights)
    assert roofline.linear(3, 5, 7, 2, mask_bits=roofline.PACKED_BITS, weight_element=2).forward().traffic == (
        activations + (2 + 1 / 8) * weights
    )
    assert roofline.linear(3, 5, 7, 2, mask_bits=0).weight_grad().traffic == activations + 4 * weights


def test_a_1x1_convolution_costs_what_its_linear_layer_costs():
    conv = roofline.conv2d((3, 5, 4, 2), (7, 5, 1, 1), element=4)
    assert conv == roofline.linear(3 * 4 * 2, 5, 7, element=4)


def test_the_floor_is_the_longer_of_the_two_times():
    assert PEAK.floor(Work(50.0, 100.0), "half") == 5.0
    assert PEAK.floor(Work(5.0, 100.0), "half") == 1.0
    assert PEAK.floor(roofline.select(200), "float32") == 8.0  # no operations, no precision
    assert Peak(None, {"half": 10.0}, "").floor(Work(50.0, 1e9), "half") == 5.0
    with pytest.raises(KeyError):
        PEAK.floor(Work(1.0, 1.0), "tf32")


def test_bytes_of_what_only_moves():
    assert roofline.draw(64).traffic == 64 * 4 + 8
    assert roofline.stage(64, element=2).traffic == 64 * (4 + 4 + 2)


@pytest.mark.parametrize("rows", [32, 128])
def test_bytes_of_a_layer_of_4096_by_scores_and_by_bits(rows):
    """bfloat16, in MB of its weight, half or in bits, with its mask; signs and mask are 2 MB each."""
    mib, activations = 2**20, 2 * 2 * rows * 4096
    sizes = {"scores": (2, 32, 96), "bits": (2, 1, 34), "signs and bits": (1 / 8, 1, 4)}
    for weight_element, mask_bits, expected in sizes.values():
        layer = roofline.linear(rows, 4096, 4096, element=2, weight_element=weight_element, mask_bits=mask_bits)
        assert layer.forward().traffic - activations == expected * mib


def test_masks_are_packed_for_training_steps_of_large_layers():
    large, few = 4096 * 4096, 16384 * 131
    assert roofline.packing_pays(large, H200, backward=True)
    assert not roofline.packing_pays(large, H200, backward=False)
    assert not roofline.packing_pays(few, H200, backward=True)
    # By hand: packing reads 4 bytes and writes 2 bits; each of two products then reads 1 bit and not 32.
    assert roofline.planes(large).traffic == 4.25 * large < 2 * (4 - 1 / 8) * large
    assert roofline.planes(large).traffic > (4 - 1 / 8) * large


@pytest.mark.parametrize("name", roofline.PEAKS)
def test_data_sheets_hold_rates_per_second(name):
    peak = roofline.PEAKS[name]
    assert 1e12 < peak.bandwidth < 1e13
    assert 1e13 < peak.flops["float32"] < peak.flops["tf32"] < peak.flops["half"] < 1e16
