"""The recipe of several tasks over one set of weights: what a task is, how it is learned and inferred."""

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels.recipes import data, registry
from edgepop_kernels.recipes.errors import ConfigError
from edgepop_kernels.recipes.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


def recipe(name="supsup-digits", **settings):
    return registry.find(name).recipe.override(**settings)


@pytest.mark.parametrize("settings", [{}, {"rule": "sign", "infer": "binary"}], ids=["top-k", "sign"])
def test_tasks_are_learned_and_told_apart(digits, settings):
    made = recipe(tasks=3, epochs=2, widths=(200, 200), infer_batch=180, threads=1, **settings)
    result = made.run(digits, CPU)
    superposition, tasks = result.charts
    assert superposition.at == [1, 2, 3] and list(superposition.lines) == ["task given", "task inferred"]
    given, inferred, found = tasks.lines.values()
    assert min(given) > 0.7
    for accuracy, of_batches, known in zip(inferred, found, given, strict=True):
        assert accuracy <= known + 0.02 and (accuracy > 0.6) == (of_batches > 0.8)
    assert superposition.lines["task inferred"][0] == pytest.approx(given[0])  # of one task there is no doubt
    if not settings:
        assert made.run(digits, CPU) == result
    (note,) = result.notes
    assert note == f"the task was found of {100 * sum(found) / 3:.1f} % of batches, among 3"


def test_weights_are_those_of_every_task_and_masks_are_not(digits):
    session = Session()
    recipe(tasks=2, epochs=1, widths=(20,)).compare(digits, CPU, session)
    first, second = session.left["task 1"], session.left["task 2"]
    assert len(first) == 2
    assert all(t.dtype == torch.uint8 for t in first.values())
    assert not torch.equal(next(iter(first.values())), next(iter(second.values())))
    kept = [(kept, weights) for _, kept, weights in session.finished["task 2"].layers]
    assert kept == [(ek.kept_count(64 * 20, 0.5), 64 * 20), (ek.kept_count(20 * 100, 0.5), 2000)]


def test_a_task_is_an_order_of_pixels_or_a_rotation(digits):
    made = recipe()
    first, again, other = (made._of_task(digits, task) for task in (0, 0, 1))
    for split, same, changed in zip(*((d.train, d.test) for d in (first, again, other)), strict=True):
        assert torch.equal(split.images, same.images) and not torch.equal(split.images, changed.images)
        assert torch.equal(split.labels, changed.labels)
        assert torch.equal(split.images.flatten(1).sort().values, changed.images.flatten(1).sort().values)
    assert not torch.equal(recipe(seed=1)._of_task(digits, 0).test.images, first.test.images)
    quarter = recipe(change="rotated", tasks=4)
    turned = [quarter._of_task(digits, task).test.images for task in range(4)]
    assert torch.equal(turned[0], digits.test.images)
    assert torch.equal(turned[1], digits.test.images.rot90(1, (2, 3)))
    assert torch.equal(turned[2], digits.test.images.rot90(2, (2, 3)))


def test_wrong_settings_are_named(digits):
    with pytest.raises(ConfigError, match=r"^outputs: expected at least the 10 classes of digits, got 9"):
        recipe(outputs=9).run(digits, CPU)
    with pytest.raises(ConfigError, match=r"^model: expected one of mlp, small-conv"):
        recipe(model="cifar-resnet18")
    with pytest.raises(ConfigError, match=r"^keep: has an effect with rule top-k only"):
        recipe(rule="sign").asked(keep=0.2)


def test_recipes_of_mnist_have_the_papers_settings():
    permuted, rotated = (registry.find(name).recipe for name in ("supsup-mnist", "supsup-mnist-rotated"))
    assert (permuted.change, permuted.rule, permuted.lr, permuted.outputs) == ("permuted", "sign", 1e-4, 100)
    assert (rotated.change, rotated.tasks, rotated.infer, rotated.outputs) == ("rotated", 36, "binary", 200)
    assert rotated.trainings() == 36
