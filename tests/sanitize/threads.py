"""Every native kernel on one thread and on four: the same bytes, and no race where ThreadSanitizer looks on.

Usage: threads.py MODULE, the compiled edgepop_kernels._native; run by ``make sanitize``, which says how. The module
needs no torch, so none of torch's threads are here.
"""

import importlib.util
import sys

import numpy as np

THREADS = 4
NO_TENSOR = (0, 0, (0, 0, 0, 0))


def load(path):
    spec = importlib.util.spec_from_file_location("_native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def strides(a):
    """In elements, of four dimensions."""
    return (0,) * (4 - a.ndim) + tuple(s // a.itemsize for s in a.strides)


def address(a):
    return a.ctypes.data


def tensor(a):
    return address(a), 0, strides(a)


def weights(a):
    """A weight as it is, and one of a magnitude with its signs."""
    number, signs = np.array([0.5], np.float32), np.packbits(a.ravel() < 0, bitorder="little")
    signs = np.concatenate([signs, np.zeros(-signs.size % 8 + 8, np.uint8)])
    yield (*tensor(a), 0), None
    yield (address(number), 0, (0, 0, 0, 0), address(signs)), (number, signs)


def ranking(scores, kept, of, cut, hint, planes):
    """planes: where mask and signs are written; with scores that do not lie in order, nowhere."""
    sizes = (1,) * (4 - scores.ndim) + scores.shape
    start, (mask, signs) = 0 if hint is None else address(hint), planes
    if not scores.flags.c_contiguous:
        mask = signs = None
    into = [0 if bits is None else address(bits) for bits in (mask, signs)]
    return address(scores), sizes, strides(scores), of, kept, address(cut), start, *into


def planes_of(scores):
    return [np.zeros((2, -(-s.size // 64) * 8 + 8), np.uint8) for s in scores]


def layers(rng):
    """Scores of many sizes and some layouts: chunks that threads share, ties, and some that no sample helps with."""
    yield from (rng.standard_normal(n, dtype=np.float32) for n in (1, 17, 4096, 5000, 40_000, 300_001))
    yield np.round(rng.standard_normal(200_000, dtype=np.float32))
    yield np.repeat(rng.standard_normal(3000, dtype=np.float32), 64)
    yield rng.standard_normal((64, 3, 3, 64), dtype=np.float32).transpose(0, 3, 1, 2)


def selections(native, threads):
    found = []
    for of in (0, 1):
        scores = list(layers(np.random.default_rng(1)))
        cuts = np.zeros((len(scores), 2), np.int64)
        for hints in ([None] * len(scores), cuts.copy(), np.roll(cuts, 1, axis=0)):  # cold, right, wrong
            planes = planes_of(scores)
            rows = zip(scores, cuts, hints, planes, strict=True)
            native.select([ranking(s, 1 + s.size // 3, of, cut, hint, bits) for s, cut, hint, bits in rows], threads)
            found += [cuts.copy(), *planes]
    return found


def steps(native, threads):
    rng = np.random.default_rng(2)
    scores = list(layers(rng))
    loose = [rng.standard_normal(n, dtype=np.float32) for n in (3, 70_000)]
    values = scores + loose
    moments = [[np.zeros(v.size, np.float32) for _ in range(3)] for v in values]
    cuts = np.zeros((len(scores), 2), np.int64)
    found = []
    for step in range(3):
        grads = [rng.standard_normal(v.size, dtype=np.float32) for v in values]
        for update in (
            ("sgd", (0.1, 0.9, 1.0, 1e-4, 1.0, 0.0, float(step == 0))),
            ("adam", (1e-3, 1.0, 0.1, -0.9, 0.999, 1e-3, 1e-8, 0.0, 1.0, 1.0)),
        ):
            parameters = [
                (address(v), address(g), [address(m) for m in three], v.size, update)
                for v, g, three in zip(values, grads, moments, strict=True)
            ]
            hints = list(cuts.copy()) if step else [None] * len(scores)
            planes = planes_of(scores)
            rows = zip(scores, cuts, hints, planes, strict=True)
            rankings = [ranking(s, 1 + s.size // 3, 0, cut, hint, bits) for s, cut, hint, bits in rows]
            native.step(parameters, rankings, threads)
            found += [*(v.copy() for v in values), cuts.copy(), *planes]
    return found


def draws(native, threads):
    scores = np.random.default_rng(3).standard_normal((100, 333), dtype=np.float32)
    seed, bits = np.array([5], np.int64), np.zeros(-(-scores.size // 64) * 8 + 8, np.uint8)
    native.draw(address(scores), (1, 1, *scores.shape), strides(scores), address(seed), address(bits), threads)
    return [bits]


def groups(native, threads):
    found = []
    for shape, group in (((1, 1, 100, 332), (4, 2, 1)), ((31, 64, 3, 3), (16, 8, 9)), ((1, 12, 257, 3), (3, 2, 771))):
        scores = np.random.default_rng(4).standard_normal(shape, dtype=np.float32)
        bits = np.zeros(-(-scores.size // 64) * 8 + 8, np.uint8)
        native.group_bits(address(scores), shape, strides(scores), 0, group, address(bits), threads)
        found.append(bits)
    return found


def blocks(native, threads):
    found = []
    for shape, counts, sizes in (
        ((1, 1, 100, 332), (25, 83, 1, 1, 1), (4, 4, 1, 1, 1)),
        ((1, 1, 333, 70), (333, 10, 1, 1, 1), (1, 7, 1, 1, 1)),
        ((62, 64, 3, 3), (62, 16, 3, 3, 1), (1, 4, 1, 1, 1)),
        ((62, 64, 3, 3), (1, 64, 1, 1, 1), (62, 1, 3, 3, 1)),
    ):
        scores = np.random.default_rng(5).standard_normal(shape, dtype=np.float32)
        sums = np.zeros(counts, np.float32)
        native.block_sums(address(scores), shape, strides(scores), 0, counts, sizes, address(sums), threads)
        cut = np.array([int(np.median(sums).astype(np.float32).view(np.int32)) + 0x80000000, 0])
        bits = np.zeros(-(-scores.size // 64) * 8 + 8, np.uint8)
        native.block_bits(address(sums), address(cut), counts, sizes, address(bits), threads)
        found += [sums, bits]
    return found


def mixtures(native, threads):
    found = []
    for count, rows in ((1, 1), (511, 2), (100_001, 3)):
        rng = np.random.default_rng(6)
        a, b = (rng.standard_normal(count, dtype=np.float32) for _ in range(2))
        codes, tables = rng.integers(0, 256, (rows, count), np.uint8), rng.random((rows, 256), np.float32)
        mixed, shares = np.zeros_like(a), np.zeros(8 * rows)
        told = address(codes), rows, count
        native.superpose(address(a), told, address(tables), count, address(mixed), threads)
        native.shares(address(a), address(b), told, count, address(shares), threads)
        found += [mixed, shares]
    return found


# batch, groups, in_channels, in_h, in_w, out_channels, out_h, out_w, then (h, w) of kernel, stride, pad, dilation
CONVOLUTIONS = [
    (3, 1, 40, 9, 11, 70, 9, 11, 3, 3, 1, 1, 1, 1, 1, 1),
    (2, 1, 3, 17, 17, 33, 8, 8, 3, 3, 2, 2, 0, 0, 1, 1),
    (2, 48, 48, 10, 10, 48, 10, 10, 3, 3, 1, 1, 1, 1, 1, 1),
    (1, 1, 300, 1, 65, 130, 1, 65, 1, 1, 1, 1, 0, 0, 1, 1),
    (1, 1, 1024, 1, 4, 700, 1, 4, 1, 1, 1, 1, 0, 0, 1, 1),
]


def convolutions(native, threads):
    found = []
    for geometry in CONVOLUTIONS:
        rng = np.random.default_rng(4)
        batch, groups, in_channels, in_h, in_w, out_channels, out_h, out_w, kernel_h, kernel_w = geometry[:10]

        def drawn(*shape, rng=rng):
            return rng.standard_normal(shape, dtype=np.float32)

        weight, scores = (drawn(out_channels, in_channels // groups, kernel_h, kernel_w) for _ in range(2))
        x, dy = drawn(batch, in_channels, in_h, in_w), drawn(batch, out_channels, out_h, out_w)
        bias, y, dx, ds = drawn(out_channels), np.zeros_like(dy), np.zeros_like(x), np.zeros_like(scores)
        cut, (planes,) = np.zeros(2, np.int64), planes_of([scores])
        native.select([ranking(scores, scores.size // 2, 0, cut, None, planes)], threads)
        for signs in (0, address(planes[1])):
            mask = (0, address(scores), strides(scores), address(cut), signs)
            for w, held in weights(weight):
                bits = signs != 0 or held is not None
                read = (2, address(planes), (0, 0, 0, 0), 0, 0) if bits else mask
                native.conv_forward(geometry, tensor(x), w, read, address(bias), tensor(y), threads)
                native.conv_backward_input(geometry, tensor(dy), w, read, tensor(dx), threads)
                operands = tensor(dy), tensor(x), w, mask
                native.conv_backward_weight(geometry, *operands, 0, tensor(ds), 0, NO_TENSOR, threads)
                found += [cut, planes, y.copy(), dx.copy(), ds.copy()]
    return found


def main():
    native = load(sys.argv[1])
    for kernels in (selections, steps, draws, groups, blocks, mixtures, convolutions):
        one, many = kernels(native, 1), kernels(native, THREADS)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, many, strict=True)), kernels.__name__
        print(f"{kernels.__name__}: {len(one)} results, the same on {THREADS} threads")


if __name__ == "__main__":
    main()
