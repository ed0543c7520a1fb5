"""Lottery tickets by uncertainty: a posterior over the weights says which of them a deterministic network needs.

The comparison of the blog post "Finding lottery tickets, the Bayesian way" (scelesticsiva, 2020), whose settings are
not published; the layers are those of ``methods.bayesian``.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch

from ..methods import bayesian
from . import models
from .checkpoint import seed_everything
from .config import Entry
from .data import Dataset
from .experiments import Experiment, Result, epochs_chart, fit
from .layers import Layers
from .masks import kept_per_layer
from .session import Outcome, Session
from .settings import choice, positive, setting


@dataclass(frozen=True, kw_only=True)
class BayesianTickets(Experiment):
    """A posterior is trained, then two deterministic networks from its initial means: whole, and with the weights
    masked that the criterion ranks lowest."""

    method: ClassVar[str] = "bayesian-tickets"

    # What a norm learns with the posterior would go into the tickets, which are to start as the posterior did.
    model: str = choice("mlp", models.WITHOUT_NORM, "network")
    keep: float = setting(0.2, "fraction of weights kept", "a number in (0, 1]", lambda value: 0 < value <= 1)
    criterion: str = choice("low_variance", bayesian.CRITERIA, "what ranks the weights")
    lr: float = positive(0.001, "learning rate at its highest")

    def trainings(self) -> int:
        return 3

    def compare(self, data: Dataset, device: torch.device, session: Session) -> None:
        self._compare(data, device, session, [self.criterion])

    def tickets(self, data: Dataset, device: torch.device, criteria: list[str]) -> Result:
        """Trains as ``run`` does, with the masked network of each criterion."""
        session = Session()
        self._compare(data, device, session, criteria)
        return self.result(session.finished)

    def _compare(self, data, device, session, criteria):
        seed_everything(self.seed)
        layers = Layers(conv=bayesian.VariationalConv2d, linear=bayesian.VariationalLinear)
        sizes = dict(widths=self.widths, width_multiplier=self.width_multiplier)
        posterior = self.place(models.build(self.model, data.image, data.classes, layers, **sizes), device)
        means = bayesian.initial_means(posterior)
        batches = self.batches(data, device)
        examples = len(data.train)

        def train_posterior():
            penalty = lambda: bayesian.kl(posterior) / examples  # noqa: E731
            return fit(self, posterior, batches, session, penalty=penalty).outcome, posterior.state_dict()

        def train_ticket(criterion, keep):
            posterior.load_state_dict(trained)
            ticket = bayesian.ticket(posterior, means, criterion, keep)
            found = fit(self, ticket, batches, session).outcome
            return replace(found, layers=kept_per_layer(ticket)), {}

        trained = session.training("posterior", train_posterior, lasting=True)
        session.training("unmasked", lambda: train_ticket("random", 1.0))
        for criterion in criteria:
            session.training(f"keep {self.keep:g} by {criterion}", partial(train_ticket, criterion, self.keep))

    def result(self, finished: dict[str, Outcome]) -> Result:
        return Result([epochs_chart({name: done.test for name, done in finished.items()})], finished)


_SOURCE = "scelesticsiva 2020, Finding lottery tickets, the Bayesian way"

RECIPES = {
    "bayesian-tickets-digits": Entry(BayesianTickets(), "published as curves only", _SOURCE),
    "bayesian-tickets-mnist": Entry(
        BayesianTickets(dataset="mnist", batch_size=128), "published as curves only", _SOURCE
    ),
}
