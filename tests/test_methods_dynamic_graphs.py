"""Graphs in discrete and continuous time against their equations, and the solver of differential equations."""

import math

import pytest
import torch
import torch.nn.functional as F

from edgepop_kernels import selecting
from edgepop_kernels.methods.dynamic_graphs import ContinuousGraph, DiscreteGraph, DynamicGraph
from edgepop_kernels.methods.ode import odeint

NODES, EDGES, INPUTS, OUTPUTS = 9, 30, 3, 2


def dynamics(model):
    """f(sum of w_uv g(Z_u)) in float64, written out; gradients flow to every w_uv, edge or not (Wortsman et al. 2019).

    Returns the function of the state and the leaves (w, convolutions, scale, shift) it is differentiated by.
    """
    ours = model.dynamics
    parameters = (ours.wires.weight, ours.conv.weight, ours.norm.weight, ours.norm.bias)
    leaves = [p.detach().double().requires_grad_() for p in parameters]
    matrix, convolutions, scale, shift = leaves
    flat = matrix.detach().abs().flatten()
    edges = torch.zeros(NODES * NODES, dtype=torch.bool)
    edges[flat.argsort(descending=True)[:EDGES]] = True
    edges = edges.view(NODES, NODES)
    w = matrix.view(NODES, NODES)
    w = w * edges + (w - w.detach()) * ~edges

    def right_hand_side(z):
        sent = F.conv2d(z.clamp(min=0), convolutions, padding=1, groups=NODES)
        arriving = torch.einsum("vu,nuhw->nvhw", w, sent)
        centred = arriving - arriving.mean((2, 3), keepdim=True)
        unit = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        return unit * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    return right_hand_side, leaves, edges


def start(x):
    return torch.cat([x.double(), torch.zeros(len(x), NODES - INPUTS, *x.shape[2:], dtype=torch.float64)], 1)


def randomised(model):
    with torch.no_grad():
        model.dynamics.norm.weight.uniform_(0.2, 0.6)
        model.dynamics.norm.bias.normal_(0, 0.3)
    return model


def compare(model, expected, leaves, rtol):
    x = torch.randn(2, INPUTS, 5, 4)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    y, want = model(ours), expected(theirs)
    dy = torch.randn_like(y)
    y.backward(dy)
    want.backward(dy.double())
    found = model.dynamics
    parameters = (found.wires.weight, found.conv.weight, found.norm.weight, found.norm.bias)
    torch.testing.assert_close(y.double(), want, rtol=1e-3, atol=1e-4)
    pairs = [(ours.grad, theirs.grad)]
    pairs += [(p.grad, leaf.grad) for p, leaf in zip(parameters, leaves, strict=True)]
    for mine, other in pairs:
        assert (mine.double() - other).norm() <= rtol * other.norm()


def test_discrete_time_is_its_equation():
    """Z(l + 1) = f(sum over edges of w_uv g(Z_u(l))), three times: value, and the gradient of every weight."""
    model = randomised(DiscreteGraph(NODES, EDGES, OUTPUTS, steps=3))
    step, leaves, edges = dynamics(model)
    compare(model, lambda x: step(step(step(start(x))))[:, -OUTPUTS:], leaves, rtol=1e-4)
    assert torch.equal(model.adjacency(), edges)
    assert model.dynamics.wires.weight.grad[:, :, 0, 0][~edges].any()  # no edges, and they learn


def test_continuous_time_is_its_equation():
    """dZ / dt = f(sum over edges of w_uv g(Z_u)) from 0 to 1, against Runge-Kutta of order 4 in even steps.

    Gradients pass the ReLU's kinks at the steps' times only, which costs any solver its order: off by 1 % at this
    tolerance, by 4 % at 1e-4.
    """
    model = randomised(ContinuousGraph(NODES, EDGES, OUTPUTS, tolerance=1e-6))
    slope, leaves, edges = dynamics(model)

    def integrated(x, steps=100):
        z, h = start(x), 1 / steps
        for _ in range(steps):
            a = slope(z)
            b = slope(z + h / 2 * a)
            c = slope(z + h / 2 * b)
            z = z + h / 6 * (a + 2 * b + 2 * c + slope(z + h * c))
        return z[:, -OUTPUTS:]

    compare(model, integrated, leaves, rtol=2e-2)
    assert torch.equal(model.adjacency(), edges)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
def test_the_solver_keeps_its_tolerance(tolerance):
    """A rotation: y'' = -y, from (1, 0) over 5 radians."""
    calls = []

    def f(t, y):
        calls.append(t)
        return torch.stack([y[1], -y[0]])

    y = odeint(f, torch.tensor([1.0, 0.0], dtype=torch.float64), 0.0, 5.0, rtol=tolerance, atol=tolerance)
    expected = torch.tensor([math.cos(5), -math.sin(5)], dtype=torch.float64)
    assert (y - expected).abs().max() < 5 * tolerance
    assert len(calls) < 600 and all(0 <= t <= 5 for t in calls)


def test_the_solver_is_differentiable():
    """y' = a y cos t: y(2) = y0 exp(a sin 2), dy/dy0 = exp(a sin 2), dy/da = y sin 2."""
    start, a = torch.randn(3).double().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y = odeint(lambda t, y: a * y * math.cos(t), start, 0.0, 2.0, rtol=1e-9, atol=1e-9)
    growth = math.exp(0.7 * math.sin(2))
    torch.testing.assert_close(y, start * growth, rtol=1e-7, atol=1e-8)
    y.sum().backward()
    torch.testing.assert_close(start.grad, torch.full_like(start, growth), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(a.grad, (start * growth * math.sin(2)).sum(), rtol=1e-6, atol=1e-8)


def test_the_solver_ends_where_there_is_no_solution():
    y = torch.ones(1, dtype=torch.float64)
    assert not odeint(lambda t, y: y / 0.0, y, 0.0, 1.0, rtol=1e-3, atol=1e-3).isfinite().any()
    with pytest.raises(RuntimeError, match="no step from time"):
        odeint(lambda t, y: y * y, y, 0.0, 2.0, rtol=1e-6, atol=1e-6)  # 1 / (1 - t): infinite at 1


def test_picture(tmp_path):
    assert DiscreteGraph(5, 7, 1).picture(tmp_path / "wiring.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: DiscreteGraph(5, 26, 1), "edges"),
        (lambda: DiscreteGraph(5, 5, 6), "outputs"),
        (lambda: DiscreteGraph(5, 5, 1, steps=0), "steps"),
        (lambda: ContinuousGraph(5, 5, 1, tolerance=0.0), "tolerance"),
        (lambda: odeint(lambda t, y: y, torch.ones(1), 1.0, 1.0, rtol=1e-3, atol=1e-3), "stop"),
        (lambda: odeint(lambda t, y: y, torch.ones(1), 0.0, 1.0, rtol=0.0, atol=1e-3), "rtol"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}: ."):
        call()


def test_one_selection_serves_all_steps(monkeypatch):
    """The weights stand still within a forward, so their cut is found once, however often they are applied."""
    model = DiscreteGraph(NODES, EDGES, OUTPUTS, steps=4)
    calls = []
    selections = selecting.selections
    monkeypatch.setattr(selecting, "selections", lambda *args: calls.append(args) or selections(*args))
    monkeypatch.setattr(selecting, "select", lambda *args: calls.append(args))
    model(torch.randn(1, INPUTS, 4, 4))
    assert len(calls) == 1
    with pytest.raises(NotImplementedError, match="DynamicGraph"):
        DynamicGraph(NODES, EDGES, OUTPUTS)(torch.randn(1, INPUTS, 4, 4))
