"""Pickles of CIFAR: any that Python or numpy wrote is read, any other is refused in one sentence and runs nothing."""

import io
import pickle
import random
import re
import resource
import struct
import types

import numpy as np
import pytest
from test_recipes_data import cifar10_files, cifar_rows, python2_pickle, write_files

from edgepop_kernels.recipes import data
from edgepop_kernels.recipes.data import unpickle
from edgepop_kernels.recipes.errors import UserError


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
