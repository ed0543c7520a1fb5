"""The autograd Functions: one forward, one backward formula each (straight-through, Ramanujan et al. 2020, eq. 3).

    dX = dY applied to W*M        dS = dW_eff * W * map'(S)        dW = dW_eff * M, or dW_eff where W scores itself

Saved for backward: x, weight, scores as they are, and the cut (16 bytes) or the packed mask (1 bit per weight); where
the selection wrote planes beside the cut, these as well (mask and signs, 2 bits per weight). ``signs`` (None: there are
none) are those of a weight of one magnitude, as ``ops`` takes it; nothing of it trains. A cut may come with ``bits``,
its mask, and its ``planes``: the forward pass and dX read the mask, dS and dW the scores and the cut, or the signs.

``update`` (None: there is none) is how an optimizer spends dS inside backward: ``optim.backward.Use``.

Each Function says apart what it computes and what it saves, which is how torch.func's transforms want them, and puts
them together in ``forward``. torch binds the arguments of every call by the signature where they are apart, which takes
longer than all else in a call: so only calls under a transform, which ``apply`` finds, take that way.

``Planned`` is both of them on a backend that plans its calls: the same formulas without an op in between. Its kernels
read a mask and signs of one bit each where there are planes, in place of scores of 32.
"""

from .calls import apply
from .context import Spends
from .products import MaskedConv2d, MaskedLinear, Planned, Prepared
from .transposed import MaskedConvTranspose2d, MaskedTransposedLinear
from .weights import MaskedWeight, MixedWeight, StraightThrough

__all__ = [
    "MaskedConv2d",
    "MaskedConvTranspose2d",
    "MaskedLinear",
    "MaskedTransposedLinear",
    "MaskedWeight",
    "MixedWeight",
    "Planned",
    "Prepared",
    "Spends",
    "StraightThrough",
    "apply",
]
