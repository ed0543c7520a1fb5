"""Other projects' masked layers, known by their names without an import of those projects, and their checkpoints.

``edgepop_kernels.convert`` takes the layers of hidden-networks and its MNIST example, hydra, dnw, torchao and
torch.nn.utils.prune, with what each says of itself; ``register`` makes another class known to it.
``edgepop_kernels.load_checkpoint`` takes their checkpoints, and ``hidden_networks.state_dict`` makes one of
hidden-networks'.
"""

from . import hidden_networks
from .containers import read_state_dict
from .table import register

__all__ = ["hidden_networks", "read_state_dict", "register"]
