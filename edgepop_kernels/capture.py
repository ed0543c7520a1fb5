"""The question whether calls are captured into a CUDA graph: what they note on the host, no replay will note."""

import torch


def capturing(tensor: torch.Tensor) -> bool:
    """Whether work on ``tensor`` goes into a graph. A torch without CUDA cannot be asked."""
    if not tensor.is_cuda:
        return False
    if tensor.get_device() == torch.cuda.current_device():  # asked for every layer and step: not through a context
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(tensor.device):
        return torch.cuda.is_current_stream_capturing()
