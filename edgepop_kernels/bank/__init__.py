"""Many masks over one set of weights."""

from .bank import MaskBank

__all__ = ["MaskBank"]
