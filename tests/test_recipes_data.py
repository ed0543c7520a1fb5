"""Loaders: every published layout is read, every damaged file is answered by one sentence that names it."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from edgepop_kernels.recipes import data
from edgepop_kernels.recipes.data import Batches, Dataset, Share, Split, crop_and_flip, draw_shifts
from edgepop_kernels.recipes.errors import UserError

PARTS = {"train": 6, "t10k": 3}


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def mnist_files(seed=0, side=5):
    random = np.random.default_rng(seed)
    files = {}
    for part, count in PARTS.items():
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(random.integers(0, 256, (count, side, side)))
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(random.integers(0, 10, count))
    return files


def write_files(folder, files, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def cifar_rows(count, seed, classes=10):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 3072), dtype=np.uint8), random.integers(0, classes, count).tolist()


def python2_pickle(pixels: np.ndarray, labels: list[int], label_key=b"labels") -> bytes:
    """The bytes Python 2's pickle wrote into the published archives: byte strings and numpy.core."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    count, width = pixels.shape
    raw = pixels.tobytes()
    array = b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R",
            b"(K\x01" + b"K" + bytes([count]) + b"M" + struct.pack("<H", width) + b"\x86",
            b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R",
            b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb",
        ]
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(label_key) + numbers + b"u."


def cifar10_files(binary, pickled=python2_pickle):
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    batches = {name: cifar_rows(2, seed) for seed, name in enumerate(names)}
    if binary:
        files = {
            f"{name}.bin": np.concatenate([np.array(labels, np.uint8)[:, None], pixels], axis=1).tobytes()
            for name, (pixels, labels) in batches.items()
        }
    else:
        files = {name: pickled(pixels, labels) for name, (pixels, labels) in batches.items()}
    return files, batches


def write_archive(path, files, prefix):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{prefix}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_digits_are_the_bundled_ones_split_in_order():
    digits = data.load("digits", None)
    assert (len(digits.train), len(digits.test), digits.image, digits.classes) == (1437, 360, (1, 8, 8), 10)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.images.max() == 16
    mean, deviation = digits.moments()
    pixels = digits.train.images.double()
    torch.testing.assert_close(mean.item(), pixels.mean().item(), rtol=1e-6, atol=0)
    torch.testing.assert_close(deviation.item(), pixels.std(unbiased=False).item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("place", [".", "raw", "torchvision"])
def test_idx_files(tmp_path, name, place, compress):
    files = mnist_files()
    subfolder = {"torchvision": {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}[name]}.get(place, place)
    write_files(tmp_path / subfolder, files, compress)
    loaded = data.load(name, tmp_path)
    assert loaded.image == (1, 5, 5)
    assert loaded.train.images.flatten().tolist() == list(files["train-images-idx3-ubyte"][16:])
    assert loaded.test.labels.tolist() == list(files["t10k-labels-idx1-ubyte"][8:])


def test_data_sets_know_their_classes_and_what_their_pixels_go_through(tmp_path):
    digits = data.load("digits", None)
    assert digits.class_names == tuple("0123456789")
    about = Batches(digits, 7, seed=0).preprocessing()
    mean, deviation = digits.moments()
    assert about.pop("mean") == mean.flatten().tolist() and about.pop("deviation") == deviation.flatten().tolist()
    assert about == {"layout": "NCHW", "image": [1, 8, 8], "values": [0, 16]}
    write_files(tmp_path / "mnist", mnist_files())
    assert data.load("mnist", tmp_path / "mnist").class_names == tuple("0123456789")
    fashion = data.load("fashion-mnist", tmp_path / "mnist")
    assert (fashion.class_names[0], fashion.class_names[9], len(fashion.class_names)) == (
        "T-shirt/top",
        "Ankle boot",
        10,
    )
    assert Batches(fashion, 3, seed=0).preprocessing()["values"] == [0, 255]


@pytest.mark.parametrize("layout", ["folder", "archive"])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifars_class_names_are_those_of_the_files_or_the_published_ones(tmp_path, name, binary, layout):
    files, inner = (cifar10_files(binary)[0], f"cifar-10-batches-{'bin' if binary else 'py'}")
    archive, classes, meta = f"cifar-10-{'binary' if binary else 'python'}", 10, "batches.meta"
    published = ["airplane", "automobile", "bird"]
    if name == "cifar100":
        (pixels, fine), published = cifar_rows(3, seed=1, classes=100), ["apple", "aquarium_fish"]
        content = python2_pickle(pixels, fine, b"fine_labels")
        if binary:
            labels = [np.full((3, 1), 7, np.uint8), np.array(fine, np.uint8)[:, None]]
            content = np.concatenate([*labels, pixels], axis=1).tobytes()
        files = {f"{part}{'.bin' if binary else ''}": content for part in ("train", "test")}
        archive, classes, meta = f"cifar-100-{'binary' if binary else 'python'}", 100, "meta"
        inner = archive

    def load(files):
        if layout == "folder":
            return data.load(name, write_files(tmp_path, files))
        write_archive(tmp_path / f"{archive}.tar.gz", files, inner)
        return data.load(name, tmp_path)

    found = load(files).class_names
    assert len(set(found)) == classes == load(files).classes and list(found[: len(published)]) == published
    own = [f"class {i}" for i in range(classes)]
    if binary:
        meta = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
        content, damaged = "\n".join([*own, "", ""]).encode(), b"one\ntwo\n"
    else:
        key = b"label_names" if name == "cifar10" else b"fine_label_names"
        content, damaged = pickle.dumps({key: [n.encode() for n in own]}, 0), pickle.dumps({key: [b"one", b"two"]}, 2)
    assert load(files | {meta: content}).class_names == tuple(own)
    with pytest.raises(UserError, match=rf"{meta} names 2 classes, expected {classes}$"):
        load(files | {meta: damaged})
    if not binary:
        with pytest.raises(UserError, match=rf"{meta} has no list b'.*' of names$"):
            load(files | {meta: pickle.dumps({key: "one"})})


def test_idx_files_with_a_dot_in_their_name(tmp_path):
    write_files(tmp_path, {name.replace("-idx", ".idx"): content for name, content in mnist_files().items()})
    assert len(data.load("mnist", tmp_path).train) == 6


def damaged_images(content):
    """(what is done to a file of 6 images of 5x5, its bytes, words of the message)."""
    return {
        "no header": (content[:9], "cut short"),
        "cut": (content[:-1], "announces 150 bytes of values and holds only 149"),
        "longer": (content + b"x", "announces 150 bytes of values and holds more"),
        "labels instead": (idx_bytes(np.zeros(6)) + bytes(99), "000008"),
        "not idx": (b"PK\x03\x04" + content[4:], "504b0304"),
        "floats": (content[:2] + b"\x0d" + content[3:], "not an IDX file of bytes"),
        "huge": (content[:4] + b"\xff" * 12 + content[16:], "damaged header"),
        "one constant": (content[:16] + bytes(150), "every training pixel"),
        "no image": (idx_bytes(np.zeros((0, 5, 5))), "0 training images of mnist but 6 labels"),
    }


@pytest.mark.parametrize("kind", damaged_images(b""))
def test_a_damaged_idx_file_is_named(tmp_path, kind):
    files = mnist_files()
    name = "train-images-idx3-ubyte"
    files[name], words = damaged_images(files[name])[kind]
    write_files(tmp_path, files)
    with pytest.raises(UserError) as error:
        data.load("mnist", tmp_path)
    assert str(tmp_path) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"no" + c[2:], lambda c: c[:40] + b"\xff" * 8 + c[48:]])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write_files(tmp_path, mnist_files(), compress=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"is a damaged gzip file") as error:
        data.load("mnist", tmp_path)
    assert str(file) in str(error.value)


def test_a_label_out_of_range_is_refused(tmp_path):
    write_files(tmp_path, mnist_files() | {"t10k-labels-idx1-ubyte": idx_bytes(np.array([1, 10, 2]))})
    with pytest.raises(UserError, match=r"test part of mnist has the label 10, outside 0\.\.9"):
        data.load("mnist", tmp_path)


def test_a_missing_file_is_named(tmp_path):
    files = mnist_files()
    del files["t10k-labels-idx1-ubyte"]
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=r"has no t10k-labels-idx1-ubyte"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("layout", ["folder", "subfolder", "archive"])
@pytest.mark.parametrize("binary", [False, True])
def test_cifar10(tmp_path, binary, layout):
    files, batches = cifar10_files(binary)
    inner = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
    if layout == "archive":
        write_archive(tmp_path / f"cifar-10-{'binary' if binary else 'python'}.tar.gz", files, inner)
    else:
        write_files(tmp_path / (inner if layout == "subfolder" else "."), files)
    loaded = data.load("cifar10", tmp_path)
    pixels = np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)])
    assert loaded.augment
    assert loaded.train.images.shape == (10, 3, 32, 32)
    assert loaded.train.images.flatten(1).tolist() == pixels.tolist()
    assert loaded.test.labels.tolist() == batches["test_batch"][1]
    assert data.detect(tmp_path) == "cifar10"


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_takes_the_fine_labels(tmp_path, binary):
    pixels, fine = cifar_rows(3, seed=1, classes=100)
    if binary:
        rows = np.concatenate([np.full((3, 1), 7, np.uint8), np.array(fine, np.uint8)[:, None], pixels], axis=1)
        files = {"train.bin": rows.tobytes(), "test.bin": rows.tobytes()}
    else:
        content = python2_pickle(pixels, fine, b"fine_labels")
        files = {"train": content, "test": content}
    loaded = data.load("cifar100", write_files(tmp_path, files))
    assert loaded.classes == 100
    assert loaded.train.labels.tolist() == fine


def test_a_cut_binary_batch_is_named(tmp_path):
    files, _ = cifar10_files(binary=True)
    write_files(tmp_path, files | {"data_batch_2.bin": files["data_batch_2.bin"][:-1]})
    with pytest.raises(UserError, match=r"data_batch_2\.bin is 6145 bytes, not a multiple of the 3073"):
        data.load("cifar10", tmp_path)


def test_a_damaged_or_incomplete_archive_is_named(tmp_path):
    files, _ = cifar10_files(binary=False)
    archive = tmp_path / "cifar-10-python.tar.gz"
    del files["data_batch_4"]
    write_archive(archive, files, "cifar-10-batches-py")
    with pytest.raises(UserError, match=r"python\.tar\.gz lacks data_batch_4"):
        data.load("cifar10", tmp_path)
    archive.write_bytes(archive.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"python\.tar\.gz is a damaged archive"):
        data.load("cifar10", tmp_path)


def test_a_missing_batch_of_an_unpacked_set_is_named(tmp_path):
    files, _ = cifar10_files(binary=False)
    del files["test_batch"]
    write_files(tmp_path, files)
    with pytest.raises(UserError, match=r"cannot read .*test_batch: No such file"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_folder_errors(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is read from a folder"):
        data.load(name, None)
    with pytest.raises(UserError, match=r"the data folder .* does not exist"):
        data.load(name, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is not a folder"):
        data.load(name, tmp_path / "file")
    with pytest.raises(UserError, match=r"has no train-images|holds no cifar"):
        data.load(name, tmp_path)
    with pytest.raises(UserError, match=r"holds none of the data sets"):
        data.detect(tmp_path)


def test_digits_refuse_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"leave out --data"):
        data.load("digits", tmp_path)


def test_detect_tells_fashion_by_the_folders_name(tmp_path):
    write_files(tmp_path / "plain", mnist_files())
    write_files(tmp_path / "fashion", mnist_files())
    write_files(tmp_path / "both" / "MNIST" / "raw", mnist_files())
    write_files(tmp_path / "both" / "FashionMNIST" / "raw", mnist_files())
    write_files(tmp_path / "only" / "FashionMNIST" / "raw", mnist_files())
    found = {name: data.detect(tmp_path / name) for name in ("plain", "fashion", "both", "only")}
    assert found == {"plain": "mnist", "fashion": "fashion-mnist", "both": "mnist", "only": "fashion-mnist"}
    assert data.detect(tmp_path / "only" / "FashionMNIST" / "raw") == "fashion-mnist"


def small_set(count=37, augment=False, channels=3, side=8):
    random = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, channels, side, side), generator=random, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10)
    return Dataset("small", 10, split, split, augment)


def test_an_epoch_is_a_permutation_that_follows_from_seed_and_epoch():
    batches = Batches(small_set(), 10, seed=5)
    epoch = list(batches.train(epoch=2))
    assert [len(labels) for _, labels in epoch] == [10, 10, 10, 7]
    assert batches.steps() == 4
    images = torch.cat([x for x, _ in epoch])
    mean, deviation = batches.mean, batches.deviation
    pixels = (images * deviation + mean).round().to(torch.uint8).flatten(1)
    assert sorted(pixels.tolist()) == sorted(batches.data.train.images.flatten(1).tolist())
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std(unbiased=False).item() - 1) < 1e-5
    for step, (again, labels) in enumerate(batches.train(epoch=2, start=1), start=1):
        assert torch.equal(again, epoch[step][0])
        assert torch.equal(labels, epoch[step][1])
    other = torch.cat([x for x, _ in batches.train(epoch=3)])
    assert not torch.equal(images, other)
    assert not torch.equal(images, torch.cat([x for x, _ in Batches(small_set(), 10, seed=6).train(2)]))


def test_augmented_batches_repeat_too_and_come_in_the_asked_memory_format():
    batches = Batches(small_set(augment=True), 10, seed=5, channels_last=True)
    first, again = list(batches.train(0)), list(batches.train(0, start=2))
    assert torch.equal(first[2][0], again[0][0])
    assert first[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", [False, True])
def test_the_parts_of_a_batch_are_its_pieces_whoever_reads_them(augment):
    batches = Batches(small_set(augment=augment), 10, seed=5)
    shares = [Share(4, 0, 2), Share(4, 2, 1), Share(4, 3, 1)]
    for step, groups in enumerate(zip(*(batches.parts(1, 2, share) for share in shares), strict=True), start=2):
        parts = [part for group in groups for part in group]
        ((whole, labels),) = [batch for i, batch in enumerate(batches.train(1)) if i == step]
        assert torch.equal(torch.cat([part.images for part in parts]), whole)
        assert torch.equal(torch.cat([part.labels for part in parts]), labels)
        assert [part.weight for part in parts] == [len(part.labels) / len(labels) for part in parts]
    pieces = [x for share in (Share(2, 0, 1), Share(2, 1, 1)) for x, _ in batches.test(share)]
    assert torch.equal(torch.cat(pieces), next(batches.test())[0])


def test_crop_and_flip_is_a_crop_of_the_padded_image_or_of_its_mirror_image():
    images = small_set(count=64).train.images
    cropped = crop_and_flip(images, draw_shifts(64, torch.Generator().manual_seed(0)))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    shifts = set()
    for image, source in zip(cropped, padded, strict=True):
        matches = [
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(9)
            for left in range(9)
            if torch.equal(image.flip(-1) if mirrored else image, source[:, top : top + 8, left : left + 8])
        ]
        assert len(matches) == 1
        shifts.add(matches[0])
    assert len({top for top, _, _ in shifts}) > 5
    assert len({left for _, left, _ in shifts}) > 5
    assert {mirrored for _, _, mirrored in shifts} == {False, True}


def test_a_channel_of_one_value_becomes_zero():
    dataset = small_set()
    dataset.train.images[:, 1] = 9
    images, _ = next(Batches(dataset, 4, seed=0).train(0))
    assert images[:, 1].abs().max() == 0


def test_the_digest_sees_every_pixel_and_label():
    digest = small_set().digest()
    assert small_set().digest() == digest
    for change in ("images", "labels"):
        dataset = small_set()
        getattr(dataset.train, change).view(-1)[-1] += 1
        assert dataset.digest() != digest
