"""Methods around the masks, in plain PyTorch on top of the public API: pruning criteria, Bayesian tickets, graphs.

>>> import edgepop_kernels.methods as methods
>>> graph = methods.graphs.StaticGraph((3, 8, 4), edges=20)
>>> int(graph.adjacency().sum())
20
"""

from . import bayesian, criteria, dynamic_graphs, graphs, ode

__all__ = ["bayesian", "criteria", "dynamic_graphs", "graphs", "ode"]
