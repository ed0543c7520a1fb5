"""What picks the best epoch: training images held out for it, or the test set, and then every name says so."""

import io
import json

import pytest
import torch
from PIL import Image
from recipe_runs import NAME, RECIPE, STEPS, SignalAt, assert_same_run, resume, rows, start, state
from rich.console import Console

from edgepop_kernels.recipes import bayesian_tickets, checkpoint, data, registry
from edgepop_kernels.recipes.data import Batches, Dataset, Split
from edgepop_kernels.recipes.errors import ConfigError, Interrupted
from edgepop_kernels.recipes.report import Report
from edgepop_kernels.recipes.trainer import Trainer

CPU = torch.device("cpu")
HELD = 203


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None)


def trained(folder, **settings):
    """The run folder, and what was printed."""
    screen = io.StringIO()
    start(folder, RECIPE.override(epochs=3, **settings), Report(Console(file=screen, width=120)))
    return folder / NAME, screen.getvalue()


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("held"), validation=HELD)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole"))


def numbered(count, test=7):
    """Images whose four pixels are their number."""
    numbers = torch.arange(count)
    images = torch.stack([numbers >> shift & 255 for shift in (0, 8, 16, 24)], 1).to(torch.uint8).view(-1, 1, 2, 2)
    return Dataset("numbered", 10, Split(images, numbers % 10), Split(images[:test], numbers[:test] % 10))


def numbers_of(split):
    return [
        sum(p << shift for p, shift in zip(row, (0, 8, 16, 24), strict=True))
        for row in split.images.flatten(1).tolist()
    ]


def test_held_out_images_are_training_images_that_are_not_trained_on():
    divided = data.hold_out(numbered(1009), 101)
    left, out = numbers_of(divided.train), numbers_of(divided.validation)
    assert (len(left), len(out)) == (908, 101)
    assert sorted(left + out) == list(range(1009))
    assert left == sorted(left) and out == sorted(out)
    assert out[-1] - out[0] > 800  # from everywhere: files are often sorted by class
    assert divided.validation.labels.tolist() == [number % 10 for number in out]
    assert data.hold_out(numbered(1009), 0).validation is None


def test_which_images_are_held_out_depends_on_no_seed_and_grows_with_their_number():
    torch.manual_seed(1)
    some = numbers_of(data.hold_out(numbered(1009), 50).validation)
    torch.manual_seed(2)
    more = numbers_of(data.hold_out(numbered(1009), 101).validation)
    assert set(some) < set(more)
    assert some[:3] == [62, 85, 109]  # in every process, on every machine


def test_the_normalisation_has_seen_no_held_out_image():
    dataset = numbered(300)
    divided = data.hold_out(dataset, 100)
    mean, deviation = divided.moments()
    pixels = divided.train.images.double()
    torch.testing.assert_close(mean.item(), pixels.mean().item(), rtol=1e-6, atol=0)
    torch.testing.assert_close(deviation.item(), pixels.std(unbiased=False).item(), rtol=1e-6, atol=0)
    assert mean != dataset.moments()[0]


def test_held_out_images_are_not_augmented():
    dataset = numbered(64)
    divided = data.hold_out(Dataset("moved", 10, dataset.train, dataset.test, augment=True), 20)
    batches = Batches(divided, 7, seed=0)
    images = torch.cat([x for x, _ in batches.in_order(divided.validation)])
    pixels = (images * batches.deviation + batches.mean).round().to(torch.uint8)
    assert torch.equal(pixels, divided.validation.images)


def test_images_of_a_folder_are_held_out_too(tmp_path):
    for part, count in (("train", 9), ("val", 2)):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9, 9), (10 * i, 0, 0)).save(tmp_path / part / label / f"{i}.png")
    files = data.load("imagenet", tmp_path, 8)
    divided = data.hold_out(files, 5)
    assert sorted([*divided.train.names, *divided.validation.names]) == sorted(files.train.names)
    assert len(divided.validation) == 5
    for name, label in zip(divided.validation.names, divided.validation.labels.tolist(), strict=True):
        assert name.startswith((b"a/", b"b/")[label])
    batches = list(Batches(divided, 2, seed=0).in_order(divided.validation))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    assert divided.digest() != files.digest() != data.hold_out(files, 6).digest()


@pytest.mark.parametrize("count", [1437, 2000])
def test_holding_out_everything_is_refused(digits, count):
    with pytest.raises(ConfigError, match=f"validation: expected fewer than the 1437 training images, got {count}"):
        Trainer(RECIPE.override(validation=count), digits, CPU)


@pytest.mark.parametrize(("images", "count"), [(49_999, 0), (50_000, 5000)])
def test_five_thousand_are_held_out_of_a_large_training_set(images, count):
    trainer = Trainer(RECIPE, numbered(images), CPU)
    assert trainer.recipe.validation == count
    assert len(trainer.data.train) == images - count
    assert list(trainer.data.evaluated) == (["validation", "test"] if count else ["test"])
    assert Trainer(RECIPE.override(validation=0), numbered(images), CPU).data.validation is None


def test_the_number_is_recorded_and_comes_back(whole, held):
    for (run, _), count in ((whole, 0), (held, HELD)):
        assert json.loads((run / "config.json").read_text())["config"]["validation"] == count
        assert state(run)["config"]["validation"] == count
    assert registry.from_dict({"method": "dense", "validation": "auto"}).validation == "auto"
    assert RECIPE.override(validation="17").validation == 17
    for wrong in (-1, "many", 2.5, True):
        with pytest.raises(ConfigError, match="validation: expected auto or a whole number, at least 0"):
            RECIPE.override(validation=wrong)


def test_with_images_held_out_they_pick_the_best_epoch(held):
    run, screen = held
    assert {file.name for file in run.glob("*.pt")} == {"first.pt", "last.pt", "best-validation.pt"}
    log = rows(run / "log.csv")
    validation = [float(row["validation_accuracy"]) for row in log]
    assert all(accuracy * HELD == pytest.approx(round(accuracy * HELD)) for accuracy in validation)
    best = validation.index(max(validation)) + 1
    assert checkpoint.load_run(run, "best")["epoch"] == best
    summary = json.loads((run / "summary.json").read_text())
    (result,) = rows(run.parent / "results.csv")
    for found in (summary, {k: v and float(v) for k, v in result.items() if "accuracy" in k or "epoch" in k}):
        assert found["best_validation_epoch"] == best
        assert found["best_validation_accuracy"] == max(validation)
        assert found["validation_accuracy"] == validation[-1]
        assert found["test_accuracy"] == float(log[-1]["test_accuracy"])
        assert found["test_accuracy_at_best_validation"] == float(log[best - 1]["test_accuracy"])
        assert not found.get("best_test_accuracy")
    assert f"{1437 - HELD:,} training images, {HELD} held out for validation" in screen
    assert f"validation {validation[-1]:.2%}  test" in screen
    assert "test accuracy, epoch picked by validation" in screen
    assert f"{max(validation):.2%} (epoch {best})" in screen
    assert "picked on the test set" not in screen


def test_where_the_test_set_picks_the_best_epoch_every_name_says_so(whole):
    run, screen = whole
    assert {file.name for file in run.glob("*.pt")} == {"first.pt", "last.pt", "best-test.pt"}
    accuracy = [float(row["test_accuracy"]) for row in rows(run / "log.csv")]
    best = accuracy.index(max(accuracy)) + 1
    assert checkpoint.load_run(run, "best")["epoch"] == best
    summary = json.loads((run / "summary.json").read_text())
    (result,) = rows(run.parent / "results.csv")
    assert (summary["best_test_accuracy"], summary["best_test_epoch"]) == (max(accuracy), best)
    assert (float(result["best_test_accuracy"]), int(result["best_test_epoch"])) == (max(accuracy), best)
    for names in (summary, {name for name, value in result.items() if value != ""}, rows(run / "log.csv")[0]):
        assert not [name for name in names if "validation" in name or ("best" in name and "test" not in name)]
    assert "best test accuracy (picked on the test set)" in screen
    assert "validation" not in screen


@pytest.mark.parametrize("step", [1, 2 * (STEPS - 4) + 3])
def test_with_images_held_out_a_stopped_run_resumes_to_the_same(held, tmp_path, step):
    with pytest.raises(Interrupted):
        start(tmp_path, RECIPE.override(epochs=3, validation=HELD), SignalAt(step))
    resume(tmp_path / NAME)
    assert_same_run(tmp_path / NAME, held[0])


def test_a_goal_is_shown_for_its_own_protocol_alone():
    recipe = registry.find("wirings-mnist").recipe
    assert registry.goal("wirings-mnist", recipe.resolved(60_000), 60_000)
    assert registry.goal("wirings-mnist", recipe.override(seed=3, threads=1, validation=5000), 60_000)
    assert registry.goal("wirings-mnist", recipe.override(validation=0), 60_000) is None
    assert registry.differences("wirings-mnist", recipe.override(validation=7, lr=0.3), 60_000) == {
        "validation": 7,
        "lr": 0.3,
    }


def test_recipes_say_what_they_pick_by():
    says = {name: registry.picks(entry.recipe) for name, entry in registry.RECIPES.items()}
    for name in (
        "edge-popup-mnist",
        "dense-conv2",
        "wirings-resnet50-10",
        "supermask-bernoulli-conv4",
        "supermask-mnist",
    ):
        assert says[name] == "picks best by test accuracy, as its source does"
    assert says["wirings-mnist"] == "holds out 5,000 images, picks best by them"
    assert says["supermask-digits"].startswith("picks best by test accuracy")
    assert says["bayesian-tickets-mnist"] == "compares several trainings, picks no epoch"


def test_a_comparison_picks_no_epoch():
    for setting in ("validation", "max_steps"):
        with pytest.raises(ConfigError, match=f"{setting}: expected 0, a comparison"):
            bayesian_tickets.BayesianTickets(**{setting: 3})
