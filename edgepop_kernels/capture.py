"""Whether the calls of this moment are captured into a CUDA graph: what they note on the host, no replay will note."""

import torch


def capturing(tensor: torch.Tensor) -> bool:
    """Whether work on ``tensor`` goes into a graph. A torch without CUDA cannot be asked."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
