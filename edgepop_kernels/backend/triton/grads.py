"""dS and dW of one call: their memory, the epilogue's arguments, the second pass over split sums."""

import torch

from .kernels.weight_grad import sum_grads_kernel
from .launch import launch, words

_BLOCK = 1024  # weights of a program that adds splits


class ParameterGrads:
    """mask: (weight (o, c, kh, kw), scores likewise or the packed mask, cut, of, signs); the others as in
    ``ops.py``."""

    def __init__(self, mask, score_grad: bool, weight_grad: str, score_signs: torch.Tensor | None):
        weight, scores, cut, of, signs = mask
        self.shape = weight.shape
        weight_args = (weight, weight.stride(), None) if signs is None else signs.args
        reads_signs = score_grad and score_signs is not None and weight_grad != "kept"  # which reads the scores
        nothing = weight_args[0].new_empty(0)
        self.ds = torch.empty_like(scores) if score_grad else nothing
        self.dw = torch.empty_like(weight) if weight_grad != "none" else nothing
        c, kh, kw = weight.shape[1:]
        self.args = (
            *weight_args,
            words(scores) if of == "bits" else scores,
            None if of == "bits" else scores.stride(),
            words(score_signs) if reads_signs else None,
            (c * kh * kw, kh * kw, kw, 1),
            cut,
            self.ds,
            self.ds.stride(),
            self.dw,
            self.dw.stride(),
        )
        self.epilogue = [weight] if of == "bits" else [weight, scores]
        self.meta = {"OF": of, "SCORE_GRAD": score_grad, "WEIGHT_GRAD": weight_grad}

    def result(self):
        return self.ds, self.dw

    def of_nothing(self):
        """The gradients over no pixels."""
        return self.ds.zero_(), self.dw.zero_()

    def partials(self, splits: int) -> torch.Tensor:
        return torch.empty(splits, *self.shape, dtype=torch.float32, device=self.args[0].device)

    def of_sum(self, partials: torch.Tensor):
        args = (partials, tuple(self.shape[1:]), self.shape.numel(), *self.args)
        grid = (-(-self.shape.numel() // _BLOCK),)
        launch(sum_grads_kernel, grid, partials, args, SPLITS=len(partials), BLOCK=_BLOCK, **self.meta)
        return self.result()
