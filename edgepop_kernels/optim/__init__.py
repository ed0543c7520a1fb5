"""Score optimizers: torch.optim's SGD, Adam and AdamW, one pass over memory, which finds the next cuts on its way;
on request inside backward."""

from .adam import ScoreAdam, ScoreAdamW
from .sgd import ScoreSGD

__all__ = ["ScoreAdam", "ScoreAdamW", "ScoreSGD"]
