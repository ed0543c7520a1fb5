"""Launches the staging of an effective weight."""

import torch

from .kernels.stage import stage_kernel
from .launch import launch, words

_BLOCK = 1024


def stage(weight, scores, cut, of, workspace: torch.Tensor, signs=None) -> None:
    """Writes W*M into ``workspace``, of the weight's shape, contiguous or channels_last, in the workspace's dtype."""
    order = [0, 2, 3, 1] if weight.dim() == 4 and not workspace.is_contiguous() else list(range(weight.dim()))
    index_strides = torch.empty(weight.shape, device="meta").stride()

    def four(strides, fill):
        return tuple([fill] * (4 - len(order)) + [strides[d] for d in order])

    args = (
        weight,
        four(weight.stride(), 0),
        None if signs is None else words(signs),
        words(scores) if of == "bits" else scores,
        None if of == "bits" else four(scores.stride(), 0),
        four(index_strides, 0),
        four(weight.shape, 1)[1:],
        weight.numel(),
        cut,
        workspace,
    )
    launch(stage_kernel, (-(-weight.numel() // _BLOCK),), workspace, args, OF=of, BLOCK=_BLOCK)
