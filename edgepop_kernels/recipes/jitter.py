"""The augmentation of the thresholded supermasks: flips, rotations and shifts, a whole batch at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DEGREES = 20.0
SHIFT = 0.2  # of the image's side


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored with probability 1/2, turned by up to 20 degrees and shifted by up to a fifth either way.

    images: float32 [B, C, H, W], square; what comes in from outside repeats the border. Bilinear. generator: on the
    CPU, so that devices see the same batches.
    """
    count = len(images)
    angle = math.radians(DEGREES) * (2 * torch.rand(count, generator=generator) - 1)
    shift = 2 * SHIFT * (2 * torch.rand(count, 2, generator=generator) - 1)  # images span -1 to 1
    mirrored = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    rows = [mirrored * angle.cos(), -angle.sin(), shift[:, 0], mirrored * angle.sin(), angle.cos(), shift[:, 1]]
    theta = torch.stack(rows, 1).view(count, 2, 3).to(images.device)  # [B, 2, 3]: from output to input places
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # [B, H, W, 2]
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
