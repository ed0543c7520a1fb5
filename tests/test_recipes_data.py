"""Loaders: every published layout is read, every damaged file is answered by one sentence that names it."""

import gzip
import io
import pickle
import random
import re
import resource
import struct
import tarfile
import types

import numpy as np
import pytest
import torch

from edgepop_kernels.recipes import data
from edgepop_kernels.recipes.data import Batches, Dataset, Share, Split, crop_and_flip, draw_shifts, unpickle
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


class Python2Names(pickle._Pickler):
    """Writes Python 3 objects under the names that numpy had before its version 2, or has since."""

    def __init__(self, file, protocol, core):
        super().__init__(file, protocol)
        self.core = core

    def save_global(self, obj, name=None):
        module = getattr(obj, "__module__", None) or ""
        if not re.match(r"numpy\._?core\.", module):
            return super().save_global(obj, name)
        module, name = re.sub(r"numpy\._?core", self.core, module), name or obj.__name__
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(obj)
        return None

    dispatch = pickle._Pickler.dispatch | {types.FunctionType: save_global}


def pickled_again(batch, protocol, core):
    file = io.BytesIO()
    Python2Names(file, protocol, core).dump(batch)
    assert core.encode() in file.getvalue()
    return file.getvalue()


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("order", ["C", "F"])
def test_cifar10_pickled_again_by_python_3(tmp_path, protocol, order, core):
    """Labels as a list, as arrays of any whole numbers, as numpy's scalars; keys as bytes or text; empty strings."""
    kinds = iter([list, np.int64, np.uint8, np.dtype(">i4"), np.float64, np.int32])

    def pickled(pixels, labels):
        kind = next(kinds)
        key = str if kind is np.int32 else str.encode
        if kind is np.float64:
            labels = [np.int64(label) for label in labels]
        elif kind is not list:
            labels = np.array(labels, kind)
        batch = {"data": np.asarray(pixels, order=order), "labels": labels, "batch_label": b"", "filenames": [b"a.png"]}
        return pickled_again({key(name): value for name, value in batch.items()}, protocol, core)

    files, batches = cifar10_files(binary=False, pickled=pickled)
    loaded = data.load("cifar10", write_files(tmp_path, files))
    assert loaded.train.images.flatten(1).tolist() == [row for n in list(batches)[:5] for row in batches[n][0].tolist()]
    assert loaded.train.labels.tolist() == [label for n in list(batches)[:5] for label in batches[n][1]]
    assert loaded.test.images.flatten(1).tolist() == batches["test_batch"][0].tolist()
    assert loaded.test.labels.tolist() == batches["test_batch"][1]


@pytest.mark.parametrize("protocol", range(6))
def test_cifar10_as_pickle_writes_it_here(tmp_path, protocol):
    files, batches = cifar10_files(
        binary=False,
        pickled=lambda pixels, labels: pickle.dumps({"data": pixels, "labels": np.array(labels)}, protocol=protocol),
    )
    loaded = data.load("cifar10", write_files(tmp_path, files))
    assert loaded.test.images.flatten(1).tolist() == batches["test_batch"][0].tolist()
    assert loaded.test.labels.tolist() == batches["test_batch"][1]


def python2_text_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2 wrote in protocol 0, its default: lines of text, byte strings as literals with escapes."""

    def text(value: bytes) -> bytes:
        literal = repr(value)[1:].encode()  # b'..' of Python 3 is '..' of Python 2
        return b"S" + literal + b"\n"

    count, width = pixels.shape
    array = b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntp3\n"
            + text(b"b")
            + b"p4\ntp5\nRp6\n",
            b"(I1\n(I%d\nI%d\ntp7\ncnumpy\ndtype\np8\n(" % (count, width) + text(b"u1") + b"I0\nI1\ntp9\nRp10\n",
            b"(I3\n" + text(b"|") + b"NNNI-1\nI-1\nI0\ntp11\nbI00\n" + text(pixels.tobytes()) + b"p12\ntp13\nb",
        ]
    )
    numbers = b"(lp14\n" + b"".join(b"I%d\na" % label for label in labels)
    return b"(dp0\n" + text(b"labels") + numbers + b"s" + text(b"data") + array + b"s."


def test_cifar10_pickled_again_by_python_2(tmp_path):
    files, batches = cifar10_files(binary=False, pickled=python2_text_pickle)
    loaded = data.load("cifar10", write_files(tmp_path, files))
    assert loaded.test.images.flatten(1).tolist() == batches["test_batch"][0].tolist()
    assert loaded.test.labels.tolist() == batches["test_batch"][1]


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


class Evil:
    def __reduce__(self):
        return print, ("this must not run",)


PIXELS = np.zeros((2, 3072), np.uint8)


def call(name, *arguments):
    """Opcodes that call a name, "module attribute", with these arguments, themselves opcodes."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def under_data(value):
    """A batch whose data is what these opcodes leave."""
    return b"\x80\x02}(U\x04data" + value + b"U\x06labels](K\x01K\x02eu."


def number(value):
    return pickle.dumps(value, protocol=2)[2:-1]


UINT8 = (
    call("numpy dtype", b"U\x02u1", b"K\x00", b"K\x01") + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
EMPTY_ARRAY = call("numpy.core.multiarray _reconstruct", b"cnumpy\nndarray\n", b"K\x00\x85", b"U\x01b")
HOSTILE = {
    "posix": (call("posix system", b"U\x04true"), "posix.system, which is refused"),
    "eval": (call("builtins eval", b"U\x011"), "builtins.eval, which is refused"),
    "eval of Python 2": (call("__builtin__ eval", b"U\x011"), "__builtin__.eval, which is refused"),
    "getattr": (call("builtins getattr", b"cnumpy\ndtype\n", b"U\x01x"), "builtins.getattr, which is refused"),
    "import": (call("builtins __import__", b"U\x02os"), "builtins.__import__, which is refused"),
    "dotted": (b"\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93", "numpy.ndarray.__reduce__, which is refused"),
    "dotted module": (b"\x8c\x05numpy\x8c\x0bcore._ufunc\x93", "numpy.core._ufunc, which is refused"),
    "numpy's own": (call("numpy load", b"U\x01x"), "numpy.load, which is refused"),
    "this reader's own": (call("edgepop_kernels.recipes.data.unpickle _scalar"), "unpickle._scalar, which is refused"),
    "codec": (call("_codecs encode", b"X\x01\x00\x00\x00a", b"U\x03zip"), "is refused"),
    "decode": (call("_codecs decode", b"X\x01\x00\x00\x00a", b"U\x03hex"), "_codecs.decode, which is refused"),
    "bytes of a number": (call("builtins bytes", number(1 << 40)), "is damaged"),
    "a call of an array": (EMPTY_ARRAY + b"(tR", "is damaged"),
    "a call of a call": (call("numpy dtype", call("numpy dtype", call("os system"))), "os.system, which is refused"),
    "a class in its place": (b"cnumpy\nndarray\n", "has no array"),
    "an instance": (b"(inumpy\nndarray\n", "the opcode b'i', which is refused"),
    "an object": (b"(cnumpy\nndarray\no", "the opcode b'o', which is refused"),
    "new": (b"cnumpy\nndarray\n)\x81", "is refused"),
    "an extension": (b"\x82\x01", "is refused"),
    "a set": (b"\x8f", "is refused"),
    "build of a class": (b"cnumpy\nndarray\n}(U\x01aK\x01ub", "a change of what it names, which is refused"),
    "build of a function": (
        b"c_codecs\nencode\nN}(X\x0c\x00\x00\x00__defaults__K\x01\x85u\x86b",
        "a change of what it names, which is refused",
    ),
    "build of an array by a number": (EMPTY_ARRAY + b"K\x01b", "is damaged"),
    "build of an array by a dict": (EMPTY_ARRAY + b"}(U\x01aK\x01ub", "is damaged"),
    "build of a type by nothing": (call("numpy dtype", b"U\x02u1") + b")b", "is damaged"),
    "build of a dict": (b"}}(U\x01aK\x01ub", "is damaged"),
    "a shape that is no tuple": (EMPTY_ARRAY + b"(K\x01K\x05" + UINT8 + b"\x89U\x01atb", "an array of no shape"),
    "a negative shape": (
        EMPTY_ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + UINT8 + b"\x89U\x01atb",
        "an array of no shape",
    ),
    "a shape of many dimensions": (
        EMPTY_ARRAY + b"(K\x01(" + b"K\x01" * 99 + b"t" + UINT8 + b"\x89U\x01atb",
        "an array of no shape",
    ),
    "a shape that is huge": (
        EMPTY_ARRAY + b"(K\x01" + number((1 << 40, 1 << 40)) + UINT8 + b"\x89U\x01atb",
        "an array of shape",
    ),
    "content that is a number": (EMPTY_ARRAY + b"(K\x01K\x01\x85" + UINT8 + b"\x89K\x01tb", "without its bytes"),
    "a buffer that is a number": (
        call("numpy.core.numeric _frombuffer", number(1 << 40), UINT8, b"K\x01\x85", b"U\x01C"),
        "without its bytes",
    ),
    "a type that is a name": (EMPTY_ARRAY + b"(K\x01K\x01\x85cnumpy\ndtype\n\x89U\x01atb", "without a type"),
    "a type of objects": (
        EMPTY_ARRAY + b"(K\x01K\x01\x85" + call("numpy dtype", b"U\x01O") + b"\x89U\x08aaaaaaaatb",
        "something else than bytes or whole numbers",
    ),
    "a long buffer": (b"\x96" + struct.pack("<Q", 1 << 36) + b"a", "is damaged"),
    "a long string": (b"B" + struct.pack("<I", (1 << 32) - 1) + b"a", "is damaged"),
    "a longer string": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"a", "is damaged"),
    "a memo of many": (b"Nr" + struct.pack("<I", (1 << 32) - 1), "has no array"),
    "a text encoded many times": (
        b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x000"
        + call("_codecs encode", b"h\x00", b"X\x06\x00\x00\x00latin1") * 4000,
        "more byte strings than the file is long",
    ),
    "a key that is deep": (b"}(" + b"K\x01" + b"\x85" * 300_000 + b"K\x01u", "keys of another kind than text"),
    "a list as a key": (b"}(]K\x01u", "keys of another kind than text"),
    "a value without its key": (b"}(K\x01u", "is damaged"),
    "a name of many lines": (b"\x8c\x02os\x8c\x08sys\nexit\x93", "os.sys exit, which is refused"),
    "a long name": (b"cos\n" + b"x" * 10_000 + b"\n", "xxx..., which is refused"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_in_one_short_sentence(tmp_path, kind):
    value, words = HOSTILE[kind]
    stand_ins = vars(unpickle).copy()
    files, _ = cifar10_files(binary=False)
    write_files(tmp_path, files | {"data_batch_3": under_data(value)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as error:
        data.load("cifar10", tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 250
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert vars(unpickle) == stand_ins
    assert unpickle._scalar.__defaults__ is unpickle._from_buffer.__defaults__ is None


def test_a_pickle_damaged_anywhere_gives_one_sentence_or_other_numbers():
    whole = python2_pickle(*cifar_rows(2, seed=3))
    chance, sentences = random.Random(0), []
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 1, 3])):
            # Only a hundredth of the file is not pixels.
            place = chance.choice([chance.randrange(150), chance.randrange(len(whole) - 40, len(whole))])
            content[place] = chance.randrange(256)
        try:
            unpickle.read_dict(bytes(content), "it", (b"data", b"labels"))
        except UserError as error:
            sentences.append(str(error))
    assert len(sentences) > 1000 and not [sentence for sentence in sentences if "\n" in sentence]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({b"data": Evil(), b"labels": []}), "builtins.print, which is refused"),
        (b"cos\nsystem\n(S'true'\ntR.", "os.system, which is refused"),
        (b"c_codecs\nencode\n(Va\nVzip\ntR.", "_codecs.encode to 'zip', which is refused"),
        (python2_pickle(PIXELS, [1, 2])[:-40], "is damaged"),
        (python2_pickle(PIXELS[:, :3000], [1, 2]), "3072 bytes per image"),
        (python2_pickle(PIXELS, [1, 2, 3]), "2 images but 3 labels"),
        (python2_pickle(PIXELS, [1, 2], b"other"), "has no list b'labels'"),
        (pickle.dumps({b"data": PIXELS.astype(np.float32), b"labels": [1, 2]}), "something else than bytes"),
        (pickle.dumps({b"data": PIXELS, b"labels": [1, 10**30]}), "which no CIFAR set has"),
        (pickle.dumps([1, 2]), "no dict inside"),
        (b"", "is damaged"),
        (b"\x89PNG\r\n", "a persistent object, which is refused"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_foreign_or_damaged_pickle_is_refused_and_runs_nothing(tmp_path, capsys, content, words):
    files, _ = cifar10_files(binary=False)
    write_files(tmp_path, files | {"data_batch_3": content})
    with pytest.raises(UserError) as error:
        data.load("cifar10", tmp_path)
    assert words in str(error.value)
    assert str(tmp_path / "data_batch_3") in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


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
