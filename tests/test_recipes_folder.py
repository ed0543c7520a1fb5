"""Image folders: what is read, that it repeats whatever the workers, and one sentence for what is amiss."""

import importlib.util
import shutil

import pytest
import torch
from PIL import Image
from recipe_runs import NOTHING, SignalAt, assert_same, quiet, state

from edgepop_kernels.recipes import data, job, registry
from edgepop_kernels.recipes.data import Share, crops, folder
from edgepop_kernels.recipes.errors import Interrupted, UserError

CLASSES = ("ant", "bee", "cow")
COUNTS = {"train": 5, "val": 2}


def picture(width, height, seed, mode="RGB"):
    """Smooth, so that a resized crop is close to the crop of the resized."""
    coarse = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed))
    pixels = torch.nn.functional.interpolate(coarse[None], (height, width), mode="bilinear")[0]
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).convert(mode)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for part, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            place = root / part / name
            place.mkdir(parents=True)
            (place / "notes.txt").write_text("not an image")
            for i in range(count):
                mode = "L" if i == 1 else "RGB"
                picture(30 + 7 * i, 24 + 5 * label, seed=10 * label + i, mode=mode).save(place / f"{i}.JPEG", "jpeg")
    return root


def copied(files, tmp_path):
    return shutil.copytree(files, tmp_path / "copy")


def images_of(batches, epoch=0, start=0, share=data.WHOLE):
    return torch.cat([part.images for parts in batches.parts(epoch, start, share) for part in parts])


def test_classes_are_numbered_by_name_and_other_files_left_alone(files):
    loaded = data.load("imagenet", files, image_size=16)
    assert (loaded.classes, loaded.image, len(loaded.train), len(loaded.test)) == (3, (3, 16, 16), 15, 6)
    assert loaded.class_names == tuple(sorted(path.name for path in (files / "train").iterdir() if path.is_dir()))
    about = data.Batches(loaded, 4, seed=0).preprocessing()
    assert (about["shorter_side"], about["crop"], about["interpolation"]) == (18, "middle", "bilinear")
    assert (about["image"], about["values"]) == ([3, 16, 16], [0, 255])
    assert loaded.train.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert loaded.train.names[5] == b"bee/0.JPEG"
    assert data.detect(files) == "imagenet"


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers_nor_on_where_an_epoch_is_entered(files, workers):
    loaded = data.load("imagenet", files, image_size=16)
    here, there = (data.Batches(loaded, 4, seed=3, workers=count) for count in (0, workers))
    before = torch.get_rng_state()
    straight = list(here.parts(epoch=1))
    for (whole,), (part,) in zip(straight, there.parts(epoch=1), strict=True):
        assert torch.equal(whole.images, part.images)
        assert torch.equal(whole.labels, part.labels)
    for (whole,), (part,) in zip(straight[2:], there.parts(epoch=1, start=2), strict=True):
        assert torch.equal(whole.images, part.images)
    assert torch.equal(torch.cat([x for x, _ in here.test()]), torch.cat([x for x, _ in there.test()]))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(images_of(here, epoch=2), images_of(here, epoch=1))


def test_processes_share_what_one_reads(files):
    batches = data.Batches(data.load("imagenet", files, image_size=16), 4, seed=3)
    whole = [part for (part,) in batches.parts(0)]
    for step, parts in enumerate(zip(*(batches.parts(0, 0, Share(3, rank, 1)) for rank in range(3)), strict=True)):
        parts = [part for (part,) in parts]
        assert torch.equal(torch.cat([part.images for part in parts]), whole[step].images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole[step].labels)
        assert sum(part.weight for part in parts) == pytest.approx(1)


def test_a_test_image_is_the_middle_of_the_resized_image():
    image = picture(64, 40, seed=1)
    crop = crops.middle_crop(image, 28)  # shorter side 40 -> 32, so the whole becomes 51 x 32
    resized = image.resize((51, 32), Image.Resampling.BILINEAR).crop((11, 2, 39, 30))
    expected = torch.tensor(list(resized.tobytes())).view(28, 28, 3).permute(2, 0, 1)
    assert torch.equal(crop.long(), expected)


def test_a_random_crop_is_a_piece_of_allowed_area_and_ratio():
    boxes = []
    draws = torch.rand(400, 4, generator=torch.Generator().manual_seed(0)).tolist()
    for draw in draws:
        box = crops._box(100, 80, *draw)
        if box is not None:
            left, top, right, bottom = box
            assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
            boxes.append((right - left, bottom - top))
    areas = torch.tensor([w * h / 8000 for w, h in boxes])
    ratios = torch.tensor([w / h for w, h in boxes])
    assert 0.07 < areas.min() < 0.12 and areas.max() > 0.9
    assert 0.72 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.38
    assert len(boxes) > 200


def test_random_crops_are_mirrored_half_the_time_and_a_panorama_is_cut_in_its_middle():
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")  # brighter from left to right, or the other way
    rising = 0
    for seed in range(60):
        crop = crops.random_crop(ramp, 16, torch.Generator().manual_seed(seed)).float()
        rising += int(crop[0, :, -1].mean() > crop[0, :, 0].mean())
    assert 20 < rising < 40
    panorama = crops.random_crop(picture(2000, 4, seed=2), 16, torch.Generator().manual_seed(0))
    assert panorama.shape == (3, 16, 16)
    assert crops._middle_box(2000, 4) == (997, 0, 1002, 4)
    assert crops._middle_box(3, 300) == (0, 148, 3, 152)


def run(place, images, recipe, report=None):
    return job.start("edge-popup-conv2", recipe, images, place, NOTHING, report or quiet())


def test_a_run_on_a_folder_resumes_to_the_same_run(files, tmp_path):
    recipe = registry.find("edge-popup-conv2").recipe.override(
        dataset="imagenet", image_size=16, epochs=2, batch_size=4, workers=1, threads=1, width_multiplier=0.1
    )
    before = torch.get_num_threads()
    run(tmp_path / "a", files, recipe)
    with pytest.raises(Interrupted):
        run(tmp_path / "b", files, recipe, SignalAt(6))
    stopped = tmp_path / "b" / "edge-popup-conv2"
    job.resume(stopped, {"workers": "0"}, None, NOTHING, quiet())
    job.resume(stopped, {}, None, NOTHING, quiet())
    torch.set_num_threads(before)
    one, other = (state(tmp_path / place / "edge-popup-conv2") for place in "ab")
    assert (one["config"].pop("workers"), other["config"].pop("workers")) == (1, 0)
    assert_same(one, other, "last")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "words"), [(b"", "cannot identify"), (b"\xff\xd8\xff", "cannot identify"), ("cut", "truncated")]
)
def test_a_corrupt_image_is_named(files, tmp_path, workers, content, words):
    root = copied(files, tmp_path)
    broken = root / "train" / "bee" / "3.JPEG"
    broken.write_bytes(broken.read_bytes()[:-200] if content == "cut" else content)
    batches = data.Batches(data.load("imagenet", root, image_size=16), 4, seed=0, workers=workers)
    with pytest.raises(UserError, match=words) as error:
        images_of(batches)
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_amiss_with_a_folder_is_one_sentence(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"imagenet is read from a folder"):
        data.load("imagenet", None)
    with pytest.raises(UserError, match=r"holds no image folder: expected train/CLASS/IMAGE and val"):
        data.load("imagenet", files / "train")
    root = copied(files, tmp_path)
    for image in (root / "val" / "cow").glob("*.JPEG"):
        image.unlink()
    with pytest.raises(UserError, match=r"the class folder .*val/cow has no image"):
        data.load("imagenet", root)
    (root / "val" / "cow" / "notes.txt").unlink()
    (root / "val" / "cow").rmdir()
    with pytest.raises(UserError, match=r"the class cow is in train but not in val"):
        data.load("imagenet", root)
    (root / "flat" / "train").mkdir(parents=True)
    (root / "flat" / "val").mkdir()
    with pytest.raises(UserError, match=r"flat/train has no class folders"):
        data.load("imagenet", root / "flat")
    find = importlib.util.find_spec
    monkeypatch.setattr(folder.importlib.util, "find_spec", lambda name: None if name == "PIL" else find(name))
    with pytest.raises(UserError, match=r"pip install pillow"):
        data.load("imagenet", files)


def test_the_digest_sees_names_labels_and_the_crops_side(files, tmp_path):
    root = copied(files, tmp_path)
    digest = data.load("imagenet", root, 16).digest()
    assert digest == data.load("imagenet", files, 16).digest()
    assert digest != data.load("imagenet", root, 17).digest()
    moved = root / "val" / "ant" / "0.JPEG"
    moved.rename(moved.with_name("9.JPEG"))
    assert digest != data.load("imagenet", root, 16).digest()
