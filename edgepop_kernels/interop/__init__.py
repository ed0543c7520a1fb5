"""Other projects' masked layers, known by their names without an import of those projects.

``edgepop_kernels.convert`` takes those of hidden-networks and its MNIST example, hydra, dnw, torchao and
torch.nn.utils.prune, with what each says of itself. ``register`` makes another class known to it.
"""

from .table import register

__all__ = ["register"]
