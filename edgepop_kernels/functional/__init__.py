"""User functions: masked linear and convolution. Checks first, then the autograd Functions.

Every wrong argument is answered by a TypeError or ValueError that names it, before anything runs. Beside each function
``masked_x`` stands its product for layers, ``x_product``, whose arguments are those that ``nn.kinds`` makes.
"""

from .calls import checked_cut
from .convolution import conv1d_product, conv2d_product, masked_conv1d, masked_conv2d
from .linear import linear_product, masked_linear
from .transposed import (
    conv_transpose1d_product,
    conv_transpose2d_product,
    masked_conv_transpose1d,
    masked_conv_transpose2d,
    transposed_linear_product,
)
from .volumes import conv3d_product, masked_conv3d

__all__ = [
    "checked_cut",
    "conv1d_product",
    "conv2d_product",
    "conv3d_product",
    "conv_transpose1d_product",
    "conv_transpose2d_product",
    "linear_product",
    "masked_conv1d",
    "masked_conv2d",
    "masked_conv3d",
    "masked_conv_transpose1d",
    "masked_conv_transpose2d",
    "masked_linear",
    "transposed_linear_product",
]
