"""Graphs whose state changes in time: any node may send to any other (Wortsman et al. 2019, section 2.3).

    discrete time    Z(l + 1) = f(sum over edges (u, v) of w_uv g(Z_u(l)))
    continuous time  dZ / dt  = f(sum over edges (u, v) of w_uv g(Z_u(t)))

with g a ReLU and a 3x3 convolution of the node's own, f instance normalisation, the edges the k largest |w_uv|. All
steps share one set of weights. Every weight trains, edge or not, as in ``graphs``.

>>> import torch
>>> from edgepop_kernels.methods.dynamic_graphs import DiscreteGraph
>>> x = torch.randn(2, 3, 8, 8)  # flows into the first 3 of 20 nodes; the last 5 are read
>>> DiscreteGraph(nodes=20, edges=60, outputs=5)(x).shape
torch.Size([2, 5, 8, 8])
"""

from pathlib import Path

from torch import Tensor, nn

import edgepop_kernels as ek

from . import arguments
from .graphs import picture, share_of
from .ode import odeint


class Dynamics(nn.Module):
    """The right-hand side: (N, nodes, H, W) to the same shape, through ``edges`` of the nodes^2 weights."""

    def __init__(self, nodes: int, edges: int):
        super().__init__()
        arguments.whole("nodes", nodes, 1)
        arguments.whole("edges", edges, 1, nodes**2, f", what {nodes} nodes allow")
        self.nodes, self.edges = nodes, edges
        self.conv = nn.Conv2d(nodes, nodes, 3, padding=1, groups=nodes, bias=False)
        self.wires = ek.FusedSparseConv(nodes, nodes, 1, bias=False, keep=share_of(edges, nodes**2))
        self.norm = nn.InstanceNorm2d(nodes, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        arguments.channels(x, self.nodes, self.nodes)
        return self.norm(self.wires(self.conv(x.relu())))

    def adjacency(self) -> Tensor:
        """Bool [nodes, nodes], true at (v, u) for an edge u -> v."""
        return self.wires.mask()[:, :, 0, 0]


class DynamicGraph(nn.Module):
    """The base of the two kinds. Input (N, inputs, H, W) with 1 <= inputs <= nodes: the state of the first nodes at the
    start, the others start at 0; output (N, outputs, H, W): the state of the last nodes at the end. Raises ValueError
    and TypeError.
    """

    def __init__(self, nodes: int, edges: int, outputs: int):
        super().__init__()
        dynamics = Dynamics(nodes, edges)
        arguments.whole("outputs", outputs, 1, nodes, ", the number of nodes")
        self.outputs, self.dynamics = outputs, dynamics
        ek.share_selection(self)  # the weights stand still within a forward: one selection for all of its steps

    def evolve(self, state: Tensor) -> Tensor:
        """The state (N, nodes, H, W) at the end from that at the start."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its state changes")

    def forward(self, x: Tensor) -> Tensor:
        arguments.channels(x, 1, self.dynamics.nodes)  # padding by a negative number would cut channels off
        state = nn.functional.pad(x, (0, 0, 0, 0, 0, self.dynamics.nodes - x.shape[1]))
        return self.evolve(state)[:, -self.outputs :]

    def adjacency(self) -> Tensor:
        """Bool [nodes, nodes], true at (v, u) for an edge u -> v."""
        return self.dynamics.adjacency()

    def picture(self, path: Path) -> Path:
        """Writes the wiring as a PNG: rows are receiving nodes, columns sending ones."""
        return picture(self.adjacency(), path)


class DiscreteGraph(DynamicGraph):
    """A graph in discrete time: ``steps`` applications of the dynamics.

    >>> graph = DiscreteGraph(nodes=20, edges=60, outputs=5, steps=2)
    >>> graph(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 5, 8, 8])
    >>> int(graph.adjacency().sum())
    60
    """

    def __init__(self, nodes: int, edges: int, outputs: int, *, steps: int = 5):
        super().__init__(nodes, edges, outputs)
        arguments.whole("steps", steps, 1)
        self.steps = steps

    def evolve(self, state: Tensor) -> Tensor:
        for _ in range(self.steps):
            state = self.dynamics(state)
        return state


class ContinuousGraph(DynamicGraph):
    """A graph in continuous time: the dynamics as a differential equation from time 0 to 1; tolerance: relative and
    absolute, of each step.

    >>> ContinuousGraph(nodes=20, edges=60, outputs=5)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 5, 8, 8])
    """

    def __init__(self, nodes: int, edges: int, outputs: int, *, tolerance: float = 1e-3):
        super().__init__(nodes, edges, outputs)
        arguments.positive("tolerance", tolerance)
        self.tolerance = tolerance

    def evolve(self, state: Tensor) -> Tensor:
        return odeint(lambda t, y: self.dynamics(y), state, 0.0, 1.0, rtol=self.tolerance, atol=self.tolerance)
