"""Other projects' masked layers under their own names and with their own meanings: where a program of theirs makes its
layers, an import is all that changes.

Each module has the classes of one project, over this package's kernels: the same constructors, which draw the same
tensors from the same generator, the same attributes and entries of a state_dict, the same meaning of a rate and the
same gradients. What cannot be had so is refused in words.
"""

__all__ = ["dnw", "hidden_networks", "hidden_networks_mnist", "hydra", "supsup", "torchao"]
