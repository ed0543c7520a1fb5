"""Tiny ImageNet as it is published: which image is of which class, and one sentence for what is amiss."""

import pytest
import torch
from recipe_runs import NOTHING, quiet
from test_recipes_folder import picture

from edgepop_kernels.recipes import data, job, registry
from edgepop_kernels.recipes.errors import UserError

CLASSES = ("n03", "n01", "n02")  # as wnids.txt may list them; they are numbered by name
# Image -> class, as its lines are: in no order.
VAL = {"val_2.JPEG": "n01", "val_0.JPEG": "n03", "val_1.JPEG": "n01", "val_3.JPEG": "n02"}


@pytest.fixture
def files(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for number, name in enumerate(CLASSES):
        place = root / "train" / name / "images"
        place.mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("0 0 1 1")
        for i in range(3):
            picture(64, 64, seed=10 * number + i, mode="L" if i == 1 else "RGB").save(
                place / f"{name}_{i}.JPEG", "jpeg"
            )
    (root / "val" / "images").mkdir(parents=True)
    for number, image in enumerate(VAL):
        picture(64, 64, seed=100 + number).save(root / "val" / "images" / image, "jpeg")
    lines = [f"{image}\t{name}\t0\t32\t44\t62" for image, name in VAL.items()]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("\n".join(CLASSES))
    return root


@pytest.mark.parametrize("below", [True, False])
def test_images_and_their_classes(files, below):
    place = files.parent if below else files
    assert data.detect(place) == "tinyimagenet"
    found = data.load("tinyimagenet", place, image_size=32)
    assert (found.name, found.classes, found.image, found.class_names) == (
        "tinyimagenet", 3, (3, 32, 32), ("n01", "n02", "n03"),
    )  # fmt: skip
    assert found.train.names[:3].tolist() == [f"n01/images/n01_{i}.JPEG".encode() for i in range(3)]
    assert found.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    tests = dict(zip(found.test.names.tolist(), found.test.labels.tolist(), strict=True))
    assert tests == {image.encode(): int(name[-1]) - 1 for image, name in VAL.items()}
    images, labels = next(data.Batches(found, 4, seed=0).test())
    assert images.shape == (4, 3, 32, 32) and images.isfinite().all()
    assert labels.tolist() == [tests[image.encode()] for image in sorted(VAL)]


def test_a_network_is_trained_on_it(files, tmp_path):
    before = torch.get_num_threads()
    recipe = registry.find("edge-popup-conv2").recipe.override(
        dataset="tinyimagenet", image_size=16, epochs=1, batch_size=3, workers=0, threads=1, width_multiplier=0.1
    )
    summary = job.start("edge-popup-conv2", recipe, files, tmp_path / "runs", NOTHING, quiet())
    torch.set_num_threads(before)
    assert summary.last["epoch"] == 1 and summary.accuracies["test_accuracy"] in (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("val_9.JPEG\tn01\t0", r"val_annotations.txt names val_9.JPEG, which .*images does not have"),
        ("val_0.JPEG\tn09\t0", r"val_annotations.txt, line 1: expected an image and a class of train/, got 'val_0"),
        ("val_0.JPEG", r"val_annotations.txt, line 1: expected an image and a class"),
        ("", r"val_annotations.txt names no image"),
    ],
)
def test_annotations_that_do_not_fit_are_named(files, line, words):
    (files / "val" / "val_annotations.txt").write_text(line)
    with pytest.raises(UserError, match=words):
        data.load("tinyimagenet", files)


def test_what_is_not_there_is_named(files):
    with pytest.raises(UserError, match=r"holds no Tiny ImageNet: expected train/CLASS/images and val/val_annotations"):
        data.load("tinyimagenet", files / "train")
    for image in (files / "train" / "n02" / "images").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"n02/images has no image"):
        data.load("tinyimagenet", files)
