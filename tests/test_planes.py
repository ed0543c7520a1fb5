"""Products that read a mask and signs of one bit each, as selection writes them beside a cut, in place of the scores:
the same bits of every result."""

import pytest
import torch
import torch.nn.functional as F

import edgepop_kernels as ek
from edgepop_kernels import ops
from edgepop_kernels.backend import native
from edgepop_kernels.testing import inputs

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))

LINEAR = [(1, 1, 1), (5, 3, 17), (32, 63, 100), (7, 130, 257), (129, 64, 33)]  # rows, in, out
# batch, in, size, out, kernel, stride, padding, dilation, groups
CONV = [
    (2, 3, (9, 11), 17, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (1, 20, (7, 7), 33, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (3, 17, (8, 5), 40, (2, 3), (1, 2), (0, 1), (2, 1), 1),
    (2, 12, (6, 7), 18, (3, 3), (1, 1), (1, 1), (1, 1), 6),
    (2, 24, (9, 9), 24, (5, 5), (1, 1), (2, 2), (1, 1), 24),
    (1, 3, (32, 32), 24, (16, 16), (16, 16), (0, 0), (1, 1), 1),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCORES = {
    "normal": torch.randn,
    "tied": lambda shape, generator: (4 * torch.randn(shape, generator=generator)).round() / 4 + 0.1,
    "with zeros": lambda shape, generator: F.dropout(torch.randn(shape, generator=generator), 0.3),
}


def selected(scores, of, keep):
    kept = ek.kept_count(scores.numel(), keep)
    cuts, (planes,) = ops.select_planes([scores], [kept], [of], None, [True])
    assert planes is not None
    return cuts[0], planes


def check(plan, x, y, weight, scores, cut, planes):
    """Forward, both gradients and that of a weight that trains beside its scores, with planes and without."""
    dy = torch.randn(y.shape, generator=inputs.generator(5)).to(y.dtype)
    results = []
    for given in (None, planes):
        torch.set_num_threads(1 if given is None else 2)
        results.append(
            [
                plan.forward(x, weight, scores, cut, None, None, given),
                plan.dx(dy, weight, scores, cut, None, given),
                *plan.dw(dy, x, weight, scores, cut, True, "none", None, given)[:1],
                *plan.dw(dy, x, weight, scores, cut, True, "kept", None, given),
            ]
        )
    for by_scores, by_bits in zip(*results, strict=True):
        assert torch.equal(by_scores, by_bits)


def check_linear(rows, n, m, dtype, kind, of="abs", keep=0.5):
    g = inputs.generator(rows + n + m)
    x, weight = torch.randn(rows, n, generator=g).to(dtype), torch.randn(m, n, generator=g)
    scores = SCORES[kind]((m, n), generator=g)
    cut, planes = selected(scores, of, keep)
    plan = native.plan_linear(x, weight, scores, of)
    check(plan, x, x.new_empty(rows, m), weight, scores, cut, planes)


def check_conv(case, dtype, kind, of="abs", keep=0.5, channels_last=False):
    batch, channels, size, out, kernel, stride, padding, dilation, groups = case
    g = inputs.generator(channels + out)
    x = torch.randn(batch, channels, *size, generator=g).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight = torch.randn(out, channels // groups, *kernel, generator=g).to(dtype)
    scores = SCORES[kind](weight.shape, generator=g)
    cut, planes = selected(scores, of, keep)
    geometry = stride, padding, dilation, groups
    formats = dict(x_channels_last=channels_last, y_channels_last=channels_last)
    plan = native.plan_conv2d(x, weight, scores, of, *geometry, **formats)
    check(plan, x, x.new_empty(plan.y_size), weight, scores, cut, planes)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", LINEAR, ids=str)
def test_a_linear_layer_is_the_same_by_bits(shape, dtype, kind):
    for of, keep in (("abs", 0.5), ("abs", 0.03), ("raw", 0.5), ("abs", 1.0)):
        check_linear(*shape, dtype, kind, of, keep)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONV, ids=str)
def test_a_convolution_is_the_same_by_bits(case, dtype, kind):
    for of, keep, channels_last in (("abs", 0.5, False), ("abs", 0.1, True), ("raw", 0.5, True)):
        check_conv(case, dtype, kind, of, keep, channels_last)


@pytest.mark.slow
@pytest.mark.usefixtures("other_isa")
def test_every_instruction_set_reads_bits():
    for kind in SCORES:
        for dtype in DTYPES:
            for shape in LINEAR:
                check_linear(*shape, dtype, kind)
            for case in CONV:
                check_conv(case, dtype, kind)


@pytest.fixture
def masks_read(monkeypatch):
    """What products were told of their masks: (of, whether signs were handed in), in the order of the calls."""
    told = []

    class Watching:
        def __getattr__(self, name):
            function = getattr(module, name)
            if not name.startswith("conv_"):
                return function

            def call(*args):
                of, *_, signs = next(a for a in args[1:] if isinstance(a, tuple) and len(a) == 5)
                told.append((name, of, signs != 0))
                return function(*args)

            return call

    module = native.compiled.kernels
    monkeypatch.setattr(native.compiled, "kernels", Watching())
    return told


BITS, ABS, RAW = 2, 0, 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, ek.optim.ScoreSGD])
def test_a_training_step_reads_scores_only_where_it_selects_and_updates(optimizer, masks_read):
    layer = ek.FusedSubnetLinear(33, 17)
    steps = optimizer([layer.scores], lr=0.1) if optimizer is torch.optim.SGD else optimizer(layer, lr=0.1)
    x = torch.randn(5, 33, requires_grad=True)
    for _ in range(2):
        masks_read.clear()
        layer(x).sum().backward()
        steps.step()
        assert masks_read == [
            ("conv_forward", BITS, False),
            ("conv_backward_input", BITS, False),
            ("conv_backward_weight", ABS, True),
        ]


def test_signs_belong_to_the_magnitude_and_bits_to_scores(masks_read):
    """Scores that rank as they are have no sign in their gradient; a weight that scores itself is read as it is."""
    x = torch.randn(5, 33)
    ek.FusedSubnetLinear(33, 17, rule=ek.TopK(0.3, of="raw"))(x).sum().backward()
    assert masks_read == [("conv_forward", BITS, False), ("conv_backward_weight", RAW, False)]
    masks_read.clear()
    ek.FusedSparseLinear(33, 17)(x).sum().backward()
    assert masks_read == [("conv_forward", ABS, False), ("conv_backward_weight", ABS, False)]


def test_evaluation_and_shared_selections_read_bits_too(masks_read):
    net = torch.nn.Sequential(ek.FusedSubnetConv(3, 8, 3), ek.FusedSubnetConv(8, 5, 3))
    ek.share_selection(net)
    x = torch.randn(2, 3, 9, 9)
    for _ in range(2):
        net(x)
    net.eval()
    for _ in range(2):
        net(x)
    assert masks_read == [("conv_forward", BITS, False)] * 8


def test_a_layer_in_channels_last_reads_its_scores(masks_read):
    layer = ek.FusedSubnetConv(8, 5, 3).to(memory_format=torch.channels_last)
    layer(torch.randn(2, 8, 9, 9))
    assert masks_read == [("conv_forward", ABS, False)]


def test_rules_that_keep_other_ties_have_no_bits(masks_read):
    layer = ek.FusedSubnetLinear(33, 17, rule=ek.Percentile(0.3))
    with torch.no_grad():
        layer.scores.copy_(torch.randint(1, 4, (17, 33)))
    assert torch.equal(layer(torch.eye(33)).T, layer.weight * layer.mask() + layer.bias[:, None])
    assert masks_read == [("conv_forward", ABS, False)]


def test_two_bits_a_weight_are_saved_for_backward():
    layer, sizes = ek.FusedSubnetLinear(256, 128, bias=False), {}

    def pack(t):
        if t is not layer.weight and t is not layer.scores:
            sizes[t.data_ptr()] = t.numel() * t.element_size()
        return t

    x = torch.randn(4, 256)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    sizes.pop(x.data_ptr())
    assert sum(sizes.values()) == 256 * 128 // 4 + 2 * 8 + 16  # the planes, their ends, the cut


def test_a_known_cut_has_the_bits_of_the_scores_as_they_are():
    """A mask that is read off the planes follows the scores through steps, loads and writes."""
    torch.manual_seed(0)
    layer = ek.FusedSubnetLinear(40, 30, keep=0.3)
    optimizer = ek.optim.ScoreSGD(layer, lr=5.0)
    x = torch.randn(8, 40)
    for write in (
        lambda: optimizer.step(),
        lambda: layer.scores.data.normal_(),
        lambda: layer.load_state_dict(layer.state_dict() | {"scores": torch.randn(30, 40)}),
        lambda: setattr(layer, "keep", 0.7),
    ):
        layer(x).square().sum().backward()
        write()
        mask = ek.mask(layer.scores.detach().clone(), layer.rule)
        assert torch.equal(layer.mask(), mask)
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight * mask, layer.bias))
