"""Selection: the cut of |scores|, against a sort, kthvalue, and one read of the scores."""

from rows import GpuSelectRow, SelectRow

RESNET50 = (  # the 54 masked layers of ResNet-50 (bottlenecks 3, 4, 6, 3): 25.5 million scores
    [3 * 64 * 49]
    + [
        n
        for width, blocks, before in ((64, 3, 64), (128, 4, 256), (256, 6, 512), (512, 3, 1024))
        for block in range(blocks)
        for n in (
            (width * (before if block == 0 else 4 * width), width * width * 9, 4 * width * width)
            + ((before * 4 * width,) if block == 0 else ())
        )
    ]
    + [2048 * 1000]
)

ROWS = [
    SelectRow(label, tuple(sizes), warm, kind, full)
    for label, sizes, kind, full in (
        ("1000", [1_000], "normal", False),
        ("36864", [36_864], "normal", False),
        ("589824", [589_824], "normal", False),
        ("2359296", [2_359_296], "normal", False),
        ("2359296", [2_359_296], "few", True),
        ("2359296", [2_359_296], "equal", True),
        ("16777216", [16_777_216], "normal", True),
        ("ResNet-50", RESNET50, "normal", True),
    )
    for warm in (False, True)
]
GPU_ROWS = [
    GpuSelectRow(label, tuple(sizes), warm)
    for label, sizes in (("2359296", [2_359_296]), ("16777216", [16_777_216]), ("ResNet-50", RESNET50))
    for warm in (False, True)
]


def test_select(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
