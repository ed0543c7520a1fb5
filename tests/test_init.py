"""Initialisations: the spread they promise, scaled by what is kept."""

import math

import pytest
import torch

import edgepop_kernels as ek

FAN_IN, FAN_OUT = 40 * 9, 60 * 9


def weight():
    return torch.empty(60, 40, 3, 3)


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("paper", 1 / 0.3), ("hidden-networks", 1 / 0.7)])
@pytest.mark.parametrize("name", ["kaiming_normal_", "kaiming_uniform_", "signed_constant_", "unsigned_constant_"])
def test_kaiming_spread(name, scale, factor):
    """std = sqrt(2 / fan); "paper" divides the fan by keep's inverse, "hidden-networks" by that of 1 - keep."""
    torch.manual_seed(0)
    w = getattr(ek.init, name)(weight(), 0.3, scale=scale)
    std = math.sqrt(2 / FAN_IN * factor)
    root_mean_square = w.square().mean().sqrt().item()
    assert root_mean_square == pytest.approx(std, rel=0.02)
    if "constant" in name:
        assert torch.allclose(w.abs(), torch.tensor(std))
        positive = (w > 0).float().mean().item()
        assert positive == 1 if name.startswith("unsigned") else abs(positive - 0.5) < 0.02
    if name == "kaiming_uniform_":
        assert w.abs().max() <= std * math.sqrt(3)


@pytest.mark.parametrize("name", ["xavier_normal_", "xavier_uniform_", "xavier_constant_"])
def test_xavier_spread(name):
    torch.manual_seed(0)
    w = getattr(ek.init, name)(weight(), 1.5)
    assert w.square().mean().sqrt().item() == pytest.approx(1.5 * math.sqrt(2 / (FAN_IN + FAN_OUT)), rel=0.02)


def test_generator_mode_and_parameters():
    generator = torch.Generator().manual_seed(7)
    first = ek.init.signed_constant_(weight(), generator=generator)
    again = ek.init.signed_constant_(weight(), generator=generator.manual_seed(7))
    assert torch.equal(first, again)
    out = ek.init.unsigned_constant_(weight(), mode="fan_out", nonlinearity="linear")
    assert out[0, 0, 0, 0].item() == pytest.approx(1 / math.sqrt(FAN_OUT))
    layer = ek.FusedSubnetConv(4, 8, 3)
    assert ek.init.kaiming_normal_(layer.weight, layer.keep) is layer.weight


KAIMING = ("kaiming_normal_", "kaiming_uniform_", "signed_constant_", "unsigned_constant_")
XAVIER = ("xavier_normal_", "xavier_uniform_", "xavier_constant_")


@pytest.mark.parametrize("scale", ["paper", "hidden-networks"])
@pytest.mark.parametrize("name", KAIMING)
def test_a_scale_that_follows_keep_needs_it(name, scale):
    """Without it nothing would be scaled; keep=1 says so, and "paper" then scales by 1."""
    function = getattr(ek.init, name)
    before = weight().fill_(7)
    with pytest.raises(ValueError, match=f"^keep: scale='{scale}' follows the fraction of weights kept, expected "):
        function(before, scale=scale)
    assert (before == 7).all()
    torch.manual_seed(0)
    plain = function(weight())
    torch.manual_seed(0)
    assert torch.equal(function(weight(), 1.0, scale="paper"), plain)


@pytest.mark.parametrize("name", [*KAIMING, *XAVIER, "scores_"])
def test_a_weight_without_fans_is_named(name):
    function, argument = getattr(ek.init, name), "scores" if name == "scores_" else "weight"
    for shape in ((), (5,), (0,)):
        with pytest.raises(ValueError, match=f"^{argument}: expected at least 2 dimensions, got shape ") as error:
            function(torch.empty(shape))
        assert str(error.value).endswith(str(shape))
    with pytest.raises(TypeError, match=rf"^{argument}: expected a torch.Tensor, got list"):
        function([[1.0]])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 0, 3, 3), (2, 3, 0, 1)], ids=str)
@pytest.mark.parametrize("name", [*KAIMING, *XAVIER, "scores_"])
def test_an_empty_weight_stays_empty(name, shape):
    assert getattr(ek.init, name)(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("name", ek.init.NAMES)
def test_a_name_stands_for_its_function(name):
    function, scaled = getattr(ek.init, f"{name}_"), name in ek.init.SCALED
    torch.manual_seed(0)
    by_name = ek.init.by_name(name, 0.3, "paper" if scaled else "none")(weight())
    torch.manual_seed(0)
    assert torch.equal(by_name, function(weight(), 0.3, scale="paper") if scaled else function(weight()))


def test_a_name_stands_for_its_function_with_mode_and_gain():
    torch.manual_seed(0)
    by_name = ek.init.by_name("kaiming_uniform", None, "none", "fan_out", "tanh")(weight())
    torch.manual_seed(0)
    assert torch.equal(by_name, ek.init.kaiming_uniform_(weight(), mode="fan_out", nonlinearity="tanh"))
    for nonlinearity in ek.init.NONLINEARITIES:
        ek.init.by_name("kaiming_normal", nonlinearity=nonlinearity)


@pytest.mark.parametrize(
    ("arguments", "argument", "error"),
    [
        (("kaiming_normal", None, "none", "fan"), "mode", ValueError),
        (("signed_constant_",), "init", ValueError),
        ((None,), "init", ValueError),
        (("xavier_normal", 0.5, "paper"), "scale", ValueError),
        (("kaiming_normal", 0.5, ["paper"]), "scale", ValueError),
        (("kaiming_normal", None, "paper"), "keep", ValueError),
        (("kaiming_normal", "half", "paper"), "keep", TypeError),
    ],
    ids=str,
)
def test_a_wrong_name_or_scale_is_refused_before_there_is_a_weight(arguments, argument, error):
    with pytest.raises(error, match=rf"^{argument}: ."):
        ek.init.by_name(*arguments)


def test_scores_of_a_bias_are_told_their_fan():
    torch.manual_seed(0)
    scores = ek.init.scores_(torch.empty(5000), fan_in=16)
    assert 0.24 < scores.abs().max() <= 0.25 and abs(scores.mean()) < 0.01
