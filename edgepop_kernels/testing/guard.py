"""Canary buffers: a kernel that reads or writes outside its operand is caught, not lucky.

Every byte of the buffer that is not an element of the tensor, before it, after it and between its strides, is 0xFF:
NaN in every floating type, so a stray load poisons the result; and it is compared afterwards, so a stray store shows.
"""

from contextlib import contextmanager

import torch

MARGIN = 256  # elements on each side: more than the widest vector (64 bytes) and the longest unrolled step of a kernel


class Guarded:
    """``tensor`` has the values, dtype and strides of ``like``, in a buffer of canaries on ``device`` (like's own).

    The strides may leave gaps (a view of every second column) and repeat elements (an expanded dimension); a move to
    another device keeps them too, which ``like.to(device)`` does not.
    """

    def __init__(self, like: torch.Tensor, margin: int = MARGIN, device: torch.device | None = None):
        device = like.device if device is None else device
        span = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) if like.numel() else 0
        size = span + 2 * margin
        bytes_ = torch.full((size * like.element_size(),), 0xFF, dtype=torch.uint8, device=device)
        buffer = bytes_.view(like.dtype)
        self.tensor = buffer.as_strided(like.shape, like.stride(), margin)
        owned = torch.zeros(size, dtype=torch.bool, device=device)
        owned.as_strided(like.shape, like.stride(), margin).fill_(True)
        if 0 in like.stride():  # copy_ refuses a destination that repeats elements
            once = tuple(slice(0, 1) if s == 0 else slice(None) for s in like.stride())
            self.tensor[once].copy_(like.detach()[once])
        else:
            self.tensor.copy_(like.detach())
        self._bytes = bytes_.view(size, like.element_size())
        self._canary = ~owned
        self._margin = margin

    def check(self, name: str = "tensor") -> None:
        """Fail if a canary was overwritten, saying how many and where, in elements from the tensor's first."""
        touched = (self._bytes != 0xFF).any(1) & self._canary
        if touched.any():
            first = int(touched.nonzero()[0]) - self._margin
            raise AssertionError(
                f"{name}: {int(touched.sum())} elements outside it were overwritten, first at {first:+d}"
            )


@contextmanager
def guarded(**operands: torch.Tensor):
    """Yield the guarded twins of ``operands`` in order; check every canary on the way out."""
    guards = {name: Guarded(tensor) for name, tensor in operands.items()}
    yield tuple(g.tensor for g in guards.values())
    for name, guard in guards.items():
        guard.check(name)


@contextmanager
def guarded_allocations():
    """Inside, what torch.empty, empty_like, zeros and new_empty hand out lies among canaries, so that outputs and
    workspaces that a kernel's launcher allocates are watched too; checked on the way out."""
    names = [(torch, "empty"), (torch, "empty_like"), (torch, "zeros"), (torch.Tensor, "new_empty")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in names]
    guards = []
    guarding = False

    def watched(name, allocate):
        def allocated(*args, **kwargs):
            nonlocal guarding
            tensor = allocate(*args, **kwargs)
            if guarding or tensor.numel() == 0 or tensor.device.type == "meta":
                return tensor
            guarding = True  # Guarded allocates too
            guards.append((name, Guarded(tensor)))
            guarding = False
            return guards[-1][1].tensor

        return allocated

    for owner, name, original in originals:
        setattr(owner, name, watched(name, original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    for name, guard in guards:
        guard.check(f"what {name} allocated")
