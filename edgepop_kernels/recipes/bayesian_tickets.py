"""Lottery tickets by uncertainty: a posterior over the weights says which of them a deterministic network needs.

The comparison of the blog post "Finding lottery tickets, the Bayesian way" (scelesticsiva, 2020), whose settings are
not published; the layers are those of ``methods.bayesian``.
"""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..methods import bayesian
from .checkpoint import seed_everything
from .config import Entry, choice, positive, setting
from .data import Batches, Dataset
from .experiments import Experiment, Result, epochs_chart, fit
from .trainer import kept_per_layer


@dataclass(frozen=True, kw_only=True)
class BayesianTickets(Experiment):
    """A posterior is trained, then two deterministic networks from its initial means: whole, and with the weights
    masked that the criterion ranks lowest."""

    method: ClassVar[str] = "bayesian-tickets"

    model: str = choice("mlp", ("mlp",), "network")
    keep: float = setting(0.2, "fraction of weights kept", "a number in (0, 1]", lambda value: 0 < value <= 1)
    criterion: str = choice("low_variance", bayesian.CRITERIA, "what ranks the weights")
    lr: float = positive(0.001, "learning rate at its highest")

    def run(self, data: Dataset, device: torch.device) -> Result:
        return self.tickets(data, device, [self.criterion])

    def tickets(self, data: Dataset, device: torch.device, criteria: list[str]) -> Result:
        """The posterior and the whole network once, and the masked network of each criterion."""
        seed_everything(self.seed)
        sizes = (torch.Size(data.image).numel(), *self.widths, data.classes)
        layers: list[nn.Module] = [nn.Flatten()]
        for narrow, wide in itertools.pairwise(sizes):
            layers += [bayesian.VariationalLinear(narrow, wide), nn.ReLU()]
        posterior = self.place(nn.Sequential(*layers[:-1]), device)
        means = bayesian.initial_means(posterior)
        batches = Batches(data.to(device), self.batch_size, self.seed, channels_last=self.channels_last)
        examples = len(data.train)
        lines = {"posterior": fit(self, posterior, batches, penalty=lambda: bayesian.kl(posterior) / examples).test}
        lines["unmasked"] = fit(self, bayesian.ticket(posterior, means, "random", 1.0), batches).test
        kept = []
        for criterion in criteria:
            ticket = bayesian.ticket(posterior, means, criterion, self.keep)
            lines[f"keep {self.keep:g} by {criterion}"] = fit(self, ticket, batches).test
            kept = kept_per_layer(ticket)
        return Result([epochs_chart(lines)], kept)


_SOURCE = "scelesticsiva 2020, Finding lottery tickets, the Bayesian way"

RECIPES = {
    "bayesian-tickets-digits": Entry(BayesianTickets(), "published as curves only", _SOURCE),
    "bayesian-tickets-mnist": Entry(
        BayesianTickets(dataset="mnist", batch_size=128), "published as curves only", _SOURCE
    ),
}
