"""Several runs of one recipe that differ in their seeds, and what they have in common at the end."""

import statistics
from collections.abc import Callable

from .config import Recipe
from .errors import ConfigError, Interrupted, UserError
from .experiments import Result
from .report import Report, Summary


def over_seeds(
    recipe: Recipe, count: int, name: str, begin: Callable[[Recipe, str], Summary | Result], report: Report
) -> list[Summary | Result]:
    """``count`` runs of ``recipe``, with its seed and the ones after it, and a line on all of them.

    begin: trains a recipe in a run folder of this name: ``name`` and the seed. Raises what that raises; the text says
    which seeds are finished, and how to go on to those that are left.
    """
    seeds = range(recipe.seed, recipe.seed + count)
    recipe.override(seed=seeds[-1])  # where that is too large, nothing runs
    found = []
    for seed in seeds:
        report.line(f"seed {seed}, {len(found) + 1} of {count}")
        try:
            found.append(begin(recipe.override(seed=seed), f"{name}-seed{seed}"))
        except Interrupted as error:
            raise Interrupted(f"{error}{_rest(seeds, seed)}") from error
        except KeyboardInterrupt as error:  # while no training is under way, or for the second time
            raise Interrupted(f"stopped in seed {seed}, whose checkpoints are whole{_rest(seeds, seed)}") from error
        except ConfigError:
            raise  # a setting that is wrong with every seed
        except UserError as error:
            raise UserError(f"{error}{_rest(seeds, seed)}") from error
    for what, values in _together(found).items():
        report.line(f"{what}: {spread(values)}")
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation of fractions, in words. The deviation's square divides by one less than the count."""
    mean, deviation = statistics.mean(values), statistics.stdev(values)
    return f"{mean:.2%} ± {deviation:.2%} (mean ± standard deviation of {len(values)} seeds)"


def _rest(seeds: range, current: int) -> str:
    finished, left = [str(seed) for seed in seeds if seed < current], seeds[-1] - current
    words = f"; finished: seed {', '.join(finished)}" if finished else ""
    return words + (
        f"; after seed {current}: the same command with --seed {current + 1} --seeds {left}" if left else ""
    )


def _together(found: list[Summary | Result]) -> dict[str, list[float]]:
    """Test accuracies by what they are of, each with one value of every run."""
    accuracies = [_headline(result) for result in found]
    return {what: [of_seed[what] for of_seed in accuracies] for what in accuracies[0]}


def _headline(found: Summary | Result) -> dict[str, float]:
    if isinstance(found, Summary):
        return found.headline
    return {f"{name}, test accuracy": outcome.test[-1] for name, outcome in found.variants.items()}
