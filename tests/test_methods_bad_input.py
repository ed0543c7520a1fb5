"""Wrong use of edgepop_kernels.methods ends in a sentence that names the argument, before anything runs or changes."""

import math
import re

import pytest
import torch
from torch import nn

from edgepop_kernels.methods import bayesian, criteria
from edgepop_kernels.methods.bayesian import VariationalConv2d, VariationalLinear
from edgepop_kernels.methods.dynamic_graphs import ContinuousGraph, DiscreteGraph, Dynamics
from edgepop_kernels.methods.graphs import ChannelNodes, StaticGraph
from edgepop_kernels.methods.ode import odeint

W, V = torch.randn(4, 5), torch.randn(4, 5)
MASK = W > 0
NAN = torch.where(torch.arange(5) == 2, math.nan, V)
IMAGES = torch.randn(2, 3, 6, 6)


def ticket(posterior=None, means=None, criterion="magnitude", keep=0.5, changed=None):
    """``changed``: name -> tensor in place of what initial_means gives, or None to leave the name out."""

    def call():
        model = nn.Sequential(nn.Sequential(VariationalLinear(6, 3))) if posterior is None else posterior()
        given = bayesian.initial_means(model) | (changed or {}) if means is None else means
        given = {name: t for name, t in given.items() if t is not None} if isinstance(given, dict) else given
        return bayesian.ticket(model, given, criterion, keep)

    return call


def diverged():
    layer = VariationalLinear(6, 3)
    with torch.no_grad():
        layer.rho[1, 2] = math.nan
    return layer


def tied():
    model = nn.Sequential(VariationalLinear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].mu
    return model


def ode(f=lambda t, y: -y, y=W, start=0.0, stop=1.0, rtol=1e-3, atol=1e-3):
    return lambda: odeint(f, y, start, stop, rtol=rtol, atol=atol)


def elbo(model, examples):
    return lambda: bayesian.negative_elbo(model, torch.randn(2, 3), torch.tensor([0, 2]), examples)


# what is wrong: (call, error, how its message begins)
BAD = {
    "layer without inputs": (lambda: VariationalLinear(0, 3), ValueError, "in_features: expected at least 1, got 0"),
    "layer of half outputs": (lambda: VariationalLinear(6, 2.5), TypeError, "out_features: expected a whole number"),
    "prior infinite": (lambda: VariationalLinear(6, 3, prior_sigma=math.inf), ValueError, "prior_sigma: "),
    "prior negative": (lambda: VariationalConv2d(3, 4, 3, prior_sigma=-1.0), ValueError, "prior_sigma: "),
    "prior a word": (lambda: VariationalLinear(6, 3, prior_sigma="1"), TypeError, "prior_sigma: expected a number"),
    "linear x too narrow": (lambda: VariationalLinear(6, 3)(torch.randn(2, 5)), ValueError, "x: expected (..., 6)"),
    "linear x a scalar": (lambda: VariationalLinear(6, 3)(torch.tensor(1.0)), ValueError, "x: expected (..., 6)"),
    "linear x integer": (lambda: VariationalLinear(6, 3)(torch.ones(2, 6).long()), TypeError, "x: "),
    "conv x of other channels": (lambda: VariationalConv2d(4, 8, 3)(IMAGES), ValueError, "x: expected (N, C, H, W)"),
    "conv x a matrix": (lambda: VariationalConv2d(4, 8, 3)(W), ValueError, "x: expected (N, C, H, W)"),
    "conv x a list": (lambda: VariationalConv2d(4, 8, 3)([1.0]), TypeError, "x: expected a torch.Tensor, got list"),
    "conv stride 0": (lambda: VariationalConv2d(3, 4, 3, stride=(1, 0)), ValueError, "stride: expected at least 1"),
    "conv kernel of three": (lambda: VariationalConv2d(3, 4, (3, 3, 3)), TypeError, "kernel_size: "),
    "conv dilation of one": (
        lambda: VariationalConv2d(3, 4, 3, dilation=(2,)),
        TypeError,
        "dilation: expected a whole",
    ),
    "conv padding -1": (lambda: VariationalConv2d(3, 4, 3, padding=-1), ValueError, "padding: expected at least 0"),
    "conv groups": (lambda: VariationalConv2d(3, 4, 3, groups=0), ValueError, "groups: expected at least 1, got 0"),
    "kl of a plain network": (lambda: bayesian.kl(nn.Linear(6, 3)), ValueError, "model: "),
    "kl of a tensor": (lambda: bayesian.kl(W), TypeError, "model: expected a network, got Tensor"),
    "bound of no examples": (elbo(VariationalLinear(6, 3), 0), ValueError, "examples: expected at least 1, got 0"),
    "bound of a negative set": (elbo(VariationalLinear(6, 3), -5), ValueError, "examples: expected at least 1"),
    "bound of a plain network": (elbo(nn.Linear(6, 3), 9), ValueError, "model: "),
    "means of a plain network": (lambda: bayesian.initial_means(nn.Linear(6, 3)), ValueError, "model: "),
    "scores of a plain layer": (lambda: bayesian.scores(nn.Linear(6, 3), "random"), TypeError, "layer: "),
    "scores of what diverged": (lambda: bayesian.scores(diverged(), "low_variance"), ValueError, "layer: "),
    "ticket of what diverged": (ticket(diverged, criterion="low_variance"), ValueError, "layer: "),
    "ticket of a tensor": (lambda: bayesian.ticket(W, {}, "random", 0.5), TypeError, "posterior: expected a network"),
    "ticket of a plain network": (
        lambda: bayesian.ticket(nn.ReLU(), {}, "random", 0.5),
        ValueError,
        "posterior: expected a network with variational layers, ReLU has none",
    ),
    "ticket of half a layer shared": (ticket(tied), ValueError, "posterior: expected modules shared whole, "),
    "ticket by a wrong criterion": (ticket(criterion="entropy"), ValueError, "criterion: "),
    "ticket that keeps nothing": (ticket(keep=0.0), ValueError, "keep: "),
    "ticket, means a list": (ticket(means=[W]), TypeError, "means: expected what initial_means gives, got list"),
    "ticket, a mean missing": (
        ticket(changed={"0.0.bias": None}),
        ValueError,
        "means: expected what initial_means gives of the posterior, it lacks '0.0.bias'",
    ),
    "ticket, a mean too many": (
        ticket(changed={"1.weight": W}),
        ValueError,
        "means: expected what initial_means gives of the posterior, it has '1.weight'",
    ),
    "ticket, a mean that would broadcast": (
        ticket(changed={"0.0.weight": torch.ones(1, 1)}),
        ValueError,
        "means['0.0.weight']: expected the posterior's shape (3, 6), got (1, 1)",
    ),
    "ticket, a mean not finite": (ticket(changed={"0.0.bias": torch.full((3,), math.nan)}), ValueError, "means['0.0"),
    "ticket, a mean a number": (ticket(changed={"0.0.bias": 0.0}), TypeError, "means['0.0.bias']: expected a torch."),
    "ticket, a mean integer": (ticket(changed={"0.0.bias": torch.zeros(3).long()}), TypeError, "means['0.0.bias']: "),
    "criterion scores, lists": (lambda: criteria.scores("movement", [1.0], [2.0]), TypeError, "initial: "),
    "criterion scores, integers": (lambda: criteria.scores("movement", W.int(), V.int()), TypeError, "initial: "),
    "criterion scores, a NaN": (lambda: criteria.scores("large_init_large_final", W, NAN), ValueError, "final: "),
    "criterion scores, gradient NaN": (
        lambda: criteria.scores("snip", W, V, gradient=NAN),
        ValueError,
        "gradient: expected finite numbers",
    ),
    "criterion scores, devices": (
        lambda: criteria.scores("movement", W, V.to("meta")),
        ValueError,
        "final: expected it on initial's device cpu, got meta",
    ),
    "signs that would broadcast": (lambda: criteria.sign_mask("same", W, V[:1]), ValueError, "final: expected initial"),
    "signs by a wrong name": (lambda: criteria.sign_mask("kept", W, V), ValueError, "sign: expected one of 'any', "),
    "prune a list": (lambda: criteria.prune([1.0], 0.5), TypeError, "score: expected a torch.Tensor, got list"),
    "prune doubles": (lambda: criteria.prune(W.double(), 0.5), TypeError, "score: expected float32"),
    "prune, keep 1.5": (lambda: criteria.prune(W, 1.5, MASK), ValueError, "keep: "),
    "prune, mask a list": (lambda: criteria.prune(W, 0.5, [True]), TypeError, "mask: expected a torch.Tensor"),
    "prune, mask elsewhere": (lambda: criteria.prune(W, 0.5, MASK.to("meta")), ValueError, "mask: expected it on "),
    "treat integers": (lambda: criteria.treat_kept("rewind", W.int(), MASK), TypeError, "initial: "),
    "treat a NaN": (lambda: criteria.treat_kept("signed_constant", NAN, MASK), ValueError, "initial: "),
    "treat pruned, final a list": (lambda: criteria.treat_pruned("zero", W, [1.0], MASK), TypeError, "final: "),
    "treat pruned, mask float": (lambda: criteria.treat_pruned("zero", W, V, W), TypeError, "mask: expected a bool"),
    "blocks a number": (lambda: StaticGraph(5, 4), TypeError, "blocks: expected at least two sizes, got 5"),
    "blocks of floats": (lambda: StaticGraph((3.0, 2.0), 4), TypeError, "blocks: expected a whole number, got 3.0"),
    "edges a float": (lambda: StaticGraph((3, 2), 2.5), TypeError, "edges: expected a whole number, got 2.5"),
    "stride 0": (lambda: StaticGraph((3, 2), 2, stride=0), ValueError, "stride: expected at least 1, got 0"),
    "norm unknown": (lambda: StaticGraph((3, 2), 2, norm="layer"), ValueError, "norm: expected one of "),
    "nodes without channels": (lambda: ChannelNodes(0), ValueError, "channels: expected at least 1, got 0"),
    "more images than a block": (lambda: StaticGraph((2, 3), 4)(IMAGES), ValueError, "x: expected (N, C, H, W) with C"),
    "fewer images than a block": (lambda: StaticGraph((4, 3), 4)(IMAGES), ValueError, "x: expected (N, C, H, W) with"),
    "one image": (lambda: StaticGraph((3, 2), 4)(IMAGES[0]), ValueError, "x: expected (N, C, H, W) with C = 3, got "),
    "no nodes": (lambda: DiscreteGraph(0, 1, 1), ValueError, "nodes: expected at least 1, got 0"),
    "nodes a float": (lambda: Dynamics(9.0, 7), TypeError, "nodes: expected a whole number, got 9.0"),
    "edges of a dynamic graph": (lambda: DiscreteGraph(9, 7.5, 2), TypeError, "edges: expected a whole number"),
    "outputs a float": (lambda: DiscreteGraph(9, 7, 2.0), TypeError, "outputs: expected a whole number, got 2.0"),
    "steps a float": (lambda: DiscreteGraph(9, 7, 2, steps=2.5), TypeError, "steps: expected a whole number, got 2.5"),
    "tolerance infinite": (lambda: ContinuousGraph(9, 7, 2, tolerance=math.inf), ValueError, "tolerance: "),
    "tolerance a word": (lambda: ContinuousGraph(9, 7, 2, tolerance="1"), TypeError, "tolerance: expected a number"),
    "more inputs than nodes, discrete": (
        lambda: DiscreteGraph(2, 3, 1)(IMAGES),
        ValueError,
        "x: expected (N, C, H, W) with C = 1 to 2, got shape (2, 3, 6, 6)",
    ),
    "more inputs than nodes, continuous": (
        lambda: ContinuousGraph(2, 3, 1)(IMAGES),
        ValueError,
        "x: expected (N, C, H, W) with C = 1 to 2, got shape (2, 3, 6, 6)",
    ),
    "no inputs": (lambda: DiscreteGraph(9, 7, 2)(IMAGES[:, :0]), ValueError, "x: expected (N, C, H, W) with C = 1 to "),
    "one image, as long as its height": (
        lambda: DiscreteGraph(9, 7, 2)(torch.randn(5, 5, 5)),
        ValueError,
        "x: expected (N, C, H, W) with C = 1 to 9, got shape (5, 5, 5)",
    ),
    "images of integers": (lambda: DiscreteGraph(9, 7, 2)(IMAGES.long()), TypeError, "x: expected floating point"),
    "state of other nodes": (lambda: Dynamics(9, 7)(IMAGES), ValueError, "x: expected (N, C, H, W) with C = 9, got "),
    "slope that would broadcast": (
        ode(lambda t, y: y[:, :1]),
        ValueError,
        "f(start, y): expected y's shape (4, 5), got (4, 1)",
    ),
    "slope a number": (ode(lambda t, y: 1.0), TypeError, "f(start, y): expected a torch.Tensor, got float"),
    "no function": (ode(f=None), TypeError, "f: expected a function of (t, y), got None"),
    "state a number": (ode(y=1.0), TypeError, "y: expected a torch.Tensor, got float"),
    "state of integers": (ode(y=W.long()), TypeError, "y: expected floating point numbers, got torch.int64"),
    "state complex": (ode(y=W + 1j), TypeError, "y: expected floating point numbers, got torch.complex64"),
    "no end": (ode(stop=math.inf), ValueError, "stop: expected a finite number, got inf"),
    "no start": (ode(start=-math.inf), ValueError, "start: expected a finite number, got -inf"),
    "start NaN": (ode(start=math.nan), ValueError, "start: expected a finite number, got nan"),
    "start a word": (ode(start="0"), TypeError, "start: expected a number, got '0'"),
    "rtol NaN": (ode(rtol=math.nan), ValueError, "rtol: expected a finite number, got nan"),
    "atol a word": (ode(atol="small"), TypeError, "atol: expected a number, got 'small'"),
}


@pytest.mark.parametrize(("call", "error", "begins"), BAD.values(), ids=BAD.keys())
def test_wrong_use_is_named(call, error, begins):
    with pytest.raises(error, match="^" + re.escape(begins)):
        call()


def test_scores_of_half_precision_weights_are_those_of_the_same_numbers():
    """Ranks of 3,000 weights do not fit in bfloat16, which counts to 256; nor do differences."""
    wi, wf = torch.randn(3000).bfloat16(), torch.randn(3000).bfloat16()
    for criterion in ("large_init_large_final", "small_init_small_final", "movement", "magnitude_increase"):
        found = criteria.scores(criterion, wi, wf)
        assert found.dtype == torch.float32
        assert torch.equal(found, criteria.scores(criterion, wi.float(), wf.float()))


def test_results_of_criteria_are_data():
    """Parameters may be handed in; what comes out belongs to no graph."""
    wi, wf = nn.Parameter(W.clone()), nn.Parameter(V.clone())
    results = [criteria.scores("movement", wi, wf), criteria.treat_kept("rewind", wi, MASK)]
    results += [criteria.treat_pruned("freeze_init", wi, wf, MASK)]
    assert not any(t.requires_grad for t in results)
