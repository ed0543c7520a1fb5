"""Tuning without a GPU: the search over made-up times, tables, and candidates vetted under Triton's interpreter."""

import contextlib
import dataclasses
import math

import pytest
import torch

from edgepop_kernels import __main__, tune
from edgepop_kernels.tuning import H200, Problem, Tile, default_tile, search, tile_for, timing
from edgepop_kernels.tuning import table as tables
from edgepop_kernels.tuning.workloads import WORKLOADS, Conv, Linear

PROBLEM = Problem("product", "half", m=512, n=4096, k=512)


def landscape(best):
    """Made-up seconds, least at ``best``: how many steps a tile is away from it."""

    def seconds(tile):
        return 1.0 + sum(
            abs(steps.index(getattr(tile, name)) - steps.index(getattr(best, name)))
            for name, steps in search.STEPS.items()
        )

    return seconds


def test_the_search_walks_to_the_best_tile_and_asks_once_for_each():
    best, asked = Tile(128, 256, 32, 8, 4, splits=4, band=16), []
    seconds = landscape(best)

    def counted(tile):
        asked.append(tile)
        return seconds(tile)

    assert search.best_tile(Tile(16, 16, 128, 4, 1), counted) == (best, 1.0)
    assert len(asked) == len(set(asked))


def test_the_search_stays_where_a_neighbour_is_faster_by_noise_only():
    start = Tile(64, 64, 32)
    assert search.best_tile(start, lambda tile: 1.0 if tile == start else 0.995) == (start, 1.0)


def test_the_search_leaves_a_start_that_cannot_run():
    start, seconds = Tile(256, 256, 128), landscape(Tile(128, 256, 64))
    tile, _ = search.best_tile(start, lambda tile: math.inf if tile == start else seconds(tile))
    assert tile == Tile(128, 256, 64)
    with pytest.raises(ValueError, match="start"):
        search.best_tile(start, lambda tile: math.inf)


def test_a_table_is_written_whole_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "table_file", lambda device: tmp_path / "deep" / f"{device}.json")
    assert tile_for(PROBLEM, H200) == default_tile(PROBLEM, H200)
    entries = {
        dataclasses.replace(PROBLEM, kernel="grad"): Tile(64, 64, 32, splits=2),
        PROBLEM: Tile(128, 128, 32, 8, 4, 1, 4),
    }
    file = tables.table_file(H200.name)
    tables.write_table(file, entries)
    assert tables.read_table(file) == entries
    assert [f.name for f in file.parent.iterdir()] == [file.name]
    assert tile_for(PROBLEM, H200) == entries[PROBLEM]
    near, far = dataclasses.replace(PROBLEM, n=3000), dataclasses.replace(PROBLEM, n=64)
    assert tile_for(near, H200) == entries[PROBLEM]
    assert tile_for(far, H200) == default_tile(far, H200)
    before = file.read_bytes()
    with pytest.raises(TypeError):
        tables.write_table(file, {PROBLEM: Tile(64, 64, object())})
    assert file.read_bytes() == before
    tables.table.cache_clear()
    tile_for.cache_clear()


def test_workloads_name_each_layer_once_and_its_ops_match(monkeypatch):
    assert len(set(WORKLOADS)) == len(WORKLOADS)
    calls = dict(tune.calls(Conv(2, 6, 9, 8, 3, 2, 2), torch.bfloat16, torch.device("cpu")))
    assert list(calls) == ["masked_conv2d", "masked_conv2d_dx", "masked_conv2d_dw"]
    x, weight, *_ = calls["masked_conv2d"]
    assert x.is_contiguous(memory_format=torch.channels_last) and weight.shape == (8, 3, 3, 3)
    assert calls["masked_conv2d_dx"][0].shape == (2, 8, 5, 5)


@pytest.fixture
def interpreted():
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("on a GPU the kernels are compiled, and `edgepop tune` is what is run")


def test_candidates_are_vetted_before_they_are_timed(interpreted, tmp_path, monkeypatch):
    """Sums of splits are made to go wrong, and to be the fastest: they are neither timed nor chosen."""
    from edgepop_kernels.backend.triton import launch, product

    monkeypatch.setattr(search, "STEPS", {"k": (16, 32), "splits": (1, 2)})
    timed, lines = [], []
    launch_all = product.launch

    def wrong_where_split(kernel, grid, tensor, args, **meta):
        launch_all(kernel, grid, tensor, args, **meta)
        if kernel.__name__ == "sum_splits_kernel":
            args[2].add_(1)

    monkeypatch.setattr(product, "launch", wrong_where_split)

    def timer(call):
        call()
        ((problem, tile),) = launch._trial.tiles.items()
        timed.append((problem.kernel, tile.splits))
        return 1.0 / (tile.k * tile.splits)

    workloads = [Linear(9, 70, 40)]
    options = {"workloads": workloads, "device": torch.device("cpu"), "dtype": torch.float32, "timer": timer}
    file = tmp_path / "table.json"
    entries = tune.tune(file, report=lines.append, **options)
    assert tables.read_table(file) == entries
    assert len(entries) == 3 and len(lines) == 3
    for problem, tile in entries.items():
        assert (tile.k, tile.splits) == (32, 1 if problem.kernel == "product" else 2)
    assert ("product", 1) in timed and ("product", 2) not in timed
    assert tune.tune(tmp_path / "other.json", "no such layer", report=lines.append, **options) == {}
    assert tune.tune(tmp_path / "other.json", minutes=0, report=lines.append, **options) == {}


def judged(raised):
    """The judge's seconds of a tile whose launch raises this."""
    from edgepop_kernels.backend.triton import product

    op = next(tune.calls(Linear(9, 70, 40), torch.float32, torch.device("cpu")))
    (problem,) = tune.asked(op)

    def fail(kernel, grid, tensor, args, **meta):
        raise raised

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "launch", fail)
        return tune.Judge(op, problem, lambda call: 1.0)(Tile(16, 16, 16))


def test_a_tile_that_a_pass_of_the_compiler_gives_up_on_is_not_timed(interpreted):
    assert judged(RuntimeError("PassManager::run failed")) == math.inf
    with pytest.raises(RuntimeError, match="no kernel image"):
        judged(RuntimeError("CUDA error: no kernel image is available"))


def test_the_device_of_the_scratch_memory_is_timed(monkeypatch):
    current, heard = [None], []

    @contextlib.contextmanager
    def on(device):
        current[0] = device
        yield
        current[0] = None

    class Event:
        def __init__(self, enable_timing):
            heard.append(current[0])

        def record(self):
            heard.append(current[0])

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return 2000.0

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: heard.append(current[0]))
    emptied = torch.empty(8, device="meta")
    assert timing.cold_seconds(lambda: heard.append(current[0]), emptied) == 2.0
    assert len(heard) == 6 and set(heard) == {emptied.device}


def test_without_a_gpu_the_command_says_so(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine can be tuned")
    pytest.importorskip("typer")
    monkeypatch.setattr("sys.argv", ["edgepop", "tune"])
    with pytest.raises(SystemExit) as stopped:
        __main__.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("edgepop: tune: ")
