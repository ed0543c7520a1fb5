"""Crops of photographs: a random one of random shape to train on, the middle one to test on. Uses Pillow."""

import math
import typing

import torch

if typing.TYPE_CHECKING:
    from PIL.Image import Image

AREA = (0.08, 1.0)  # of the image, and
RATIO = (3 / 4, 4 / 3)  # width over height of a random crop: Szegedy et al. 2015, section 6
TRIES = 10
MARGIN = 256 / 224  # a test image's shorter side over that of its crop: Krizhevsky et al. 2012 and since


def random_crop(image: "Image", side: int, random: torch.Generator) -> torch.Tensor:
    """A crop of random place, area and ratio, resized to side x side, mirrored every other time: uint8 [3, S, S].

    Draws the same numbers whatever the image's size, so that a draw is the image's alone.
    """
    draws = torch.rand(TRIES, 4, generator=random).tolist()
    mirrored = torch.rand((), generator=random).item() < 0.5
    box = next(filter(None, (_box(image.width, image.height, *draw) for draw in draws)), None)
    values = _pixels(image.resize((side, side), _bilinear(), box or _middle_box(image.width, image.height)))
    return values.flip(2) if mirrored else values


def prepared(side: int) -> dict:
    """The steps of ``middle_crop``, as plain data."""
    return {"shorter_side": round(side * MARGIN), "interpolation": "bilinear", "crop": "middle"}


def middle_crop(image: "Image", side: int) -> torch.Tensor:
    """The middle of the image resized so that its shorter side is 256/224 of ``side``: uint8 [3, S, S]."""
    scale = prepared(side)["shorter_side"] / min(image.size)
    width, height = (max(side, round(extent * scale)) for extent in image.size)
    resized = image.resize((width, height), _bilinear())
    left, top = (width - side) // 2, (height - side) // 2
    return _pixels(resized.crop((left, top, left + side, top + side)))


def _box(width: int, height: int, area: float, ratio: float, x: float, y: float) -> tuple[int, ...] | None:
    """(left, top, right, bottom) for four numbers in [0, 1); None where that crop is larger than the image."""
    pixels = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
    ratio = math.exp(math.log(RATIO[0]) + ratio * (math.log(RATIO[1]) - math.log(RATIO[0])))
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if not (0 < w <= width and 0 < h <= height):
        return None
    left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
    return left, top, left + w, top + h


def _middle_box(width: int, height: int) -> tuple[int, ...]:
    """The largest box in the middle whose ratio is allowed: for panoramas, which no draw fits."""
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _bilinear() -> int:
    from PIL import Image

    return Image.Resampling.BILINEAR


def _pixels(image: "Image") -> torch.Tensor:
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()
