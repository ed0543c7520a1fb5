"""Several processes that train one network: the same masks as one process, and one voice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from recipe_runs import assert_same, quiet, rows, start, state
from two_ranks import BERNOULLI, EDGE_POPUP

import edgepop_kernels as ek
from edgepop_kernels.recipes import evaluation, parallel
from edgepop_kernels.recipes.data import Share
from edgepop_kernels.recipes.errors import UserError
from edgepop_kernels.recipes.randomness import PartRandom

NAMES = {"edge-popup": EDGE_POPUP, "bernoulli": BERNOULLI}


@pytest.fixture(scope="module", autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder where two processes have done what two_ranks.py says. torchrun finds a free port."""
    folder = tmp_path_factory.mktemp("together")
    tests = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]), "OMP_NUM_THREADS": "1"}
    command += [str(tests / "two_ranks.py"), str(folder)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as torchrun:
        try:
            _, errors = torchrun.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            torchrun.terminate()  # which ends the two; killed, it would leave them behind
            raise
    assert torchrun.returncode == 0, errors
    return folder


@pytest.fixture(scope="module")
def seen(together):
    return [json.loads((together / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("method", NAMES)
def test_two_processes_equal_one_that_computes_the_same_two_parts(together, tmp_path, method):
    """Bit for bit: the sum of two gradients does not depend on their order, nor on who adds them."""
    recipe = NAMES[method]
    (run,) = (together / method).glob("*digits")
    start(tmp_path, recipe.override(accumulate=2), name=run.name)
    one, two = state(tmp_path / run.name), state(run)
    assert one["history"][0]["epoch"] == 1 and one["epoch"] == 1
    for part in ("model", "optimizer", "random", "masks"):
        assert_same(two[part], one[part], part)
    (found,), (expected,) = (rows(folder / "results.csv") for folder in (run.parent, tmp_path))
    assert found == expected | {"settings": expected["settings"].replace(" accumulate=2", "")}


@pytest.mark.parametrize("method", NAMES)
def test_one_process_evaluates_as_two_did(together, method):
    """Each one's half of every batch, with the masks that both drew."""
    (run,) = (together / method).glob("*digits")
    row = state(run)["history"][-1]
    (found,) = evaluation.evaluate(run, "last", None, quiet())
    assert (found.loss, found.accuracy) == (row["test_loss"], row["test_accuracy"])


def test_two_processes_have_the_masks_of_one_with_the_same_global_batch(together, tmp_path):
    """Its gradients add up in another order, so scores may differ in their last bits; where no cut lies within that
    difference, the masks cannot."""
    start(tmp_path, EDGE_POPUP)
    one, two = (
        state(tmp_path / "edge-popup-digits")["model"],
        state(together / "edge-popup" / "edge-popup-digits")["model"],
    )
    for name in ("fc1", "fc2", "fc3"):
        scores = one[f"{name}.scores"]
        ranked = scores.abs().flatten().sort().values
        cut = ranked.numel() - ek.kept_count(ranked.numel(), EDGE_POPUP.keep)
        apart = (scores - two[f"{name}.scores"]).abs().max()
        assert 2 * apart < ranked[cut] - ranked[cut - 1]
        assert torch.equal(
            ek.mask(scores, ek.TopK(EDGE_POPUP.keep)), ek.mask(two[f"{name}.scores"], ek.TopK(EDGE_POPUP.keep))
        )
        assert torch.equal(one[f"{name}.weight"], two[f"{name}.weight"])


def test_a_stop_asked_of_one_rank_stops_both_and_resumes_to_the_same_run(together, seen):
    for rank in range(2):
        assert "after epoch 0, step 7; everything is saved in" in seen[rank]["stopped"]
        assert "torchrun --nproc-per-node 2 -m edgepop_kernels train --resume" in seen[rank]["stopped"]
    assert "stopped by SIGTERM" in seen[1]["stopped"]
    stopped, straight = (together / place / "edge-popup-digits" for place in ("stopped", "edge-popup"))
    for name in ("first", "best", "last"):
        assert_same(state(stopped, name), state(straight, name), name)
    assert (stopped / "log.csv").read_bytes() == (straight / "log.csv").read_bytes()


def test_the_threads_of_the_group_end_with_it(together):
    """One that outlives it may ask for Python's lock while Python ends, which aborts the process."""
    for rank in range(2):
        names = json.loads((together / f"threads{rank}.json").read_text())
        assert not [name for name in names if "gloo" in name]


def test_rank_0_alone_leads(seen, together):
    assert [rank["leads"] for rank in seen] == [True, False]
    assert seen[0]["accuracy"] == seen[1]["accuracy"]
    for place in ("edge-popup", "bernoulli", "stopped"):
        assert len(list((together / place).iterdir())) == 2  # one run folder and results.csv


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("too small", "ConfigError: batch_size: 4 leaves 1 of 1437 images for an epoch's last batch"),
        ("missing run", "UserError: the run folder"),
        ("one rank's error", "UserError: this file is here alone"),
        ("the leader's error", "UserError: no room"),
    ],
)
def test_what_is_wrong_on_one_rank_ends_all(seen, together, case, words):
    assert seen[0][case] == seen[1][case]
    assert seen[0][case].startswith(words)
    assert not (together / "refused").exists()


@pytest.mark.parametrize("size", [3, 16, 29, 64])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_parts_cover_the_batch_whoever_computes_them(size, ranks, accumulate):
    rows = [
        list(range(size))[part]
        for rank in range(ranks)
        for part in parallel.World(rank, ranks).share(accumulate).of(size)
    ]
    assert [row for part in rows for row in part] == list(range(size))
    assert rows == [list(range(size))[part] for part in Share(ranks * accumulate, 0, ranks * accumulate).of(size)]
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("shared", [False, True])
def test_parts_share_a_drawn_mask_and_no_dropout(shared):
    layer = ek.FusedSupermaskLinear(40, 30, bias=False, rule=ek.Bernoulli())
    first, second = torch.nn.Dropout(0.5), torch.nn.Dropout(0.5)
    model = torch.nn.Sequential(layer, first, second)
    if shared:
        ek.share_selection(model)
    masked, once, twice = [], [], []
    layer.register_forward_hook(lambda module, args, y: masked.append(y))
    first.register_forward_hook(lambda module, args, y: once.append(y / masked[-1]))
    second.register_forward_hook(lambda module, args, y: twice.append(y / once[-1] / masked[-1]))
    random = PartRandom(model, torch.device("cpu"))
    begun = torch.get_rng_state()
    for number in range(2):
        with random.part((0, 0, 0, number), number > 0):
            model(torch.eye(40))
    assert torch.equal(*masked)  # W * M, transposed
    assert not torch.equal(*(factor.nan_to_num() for factor in once))
    assert not torch.equal(once[0].nan_to_num(), twice[0].nan_to_num())
    after = torch.get_rng_state()
    torch.set_rng_state(begun)
    layer(torch.eye(40))  # the mask alone has moved the common generator
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(masked[0], masked[2])


COMPLETE = dict(
    RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="1"
)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but not RANK, LOCAL_RANK"),
        (COMPLETE | {"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number, as torchrun sets it, got 'two'"),
        (COMPLETE | {"RANK": "x"}, "RANK: expected a whole number, as torchrun sets it, got 'x'"),
        (COMPLETE | {"RANK": "2"}, "RANK: expected less than WORLD_SIZE=2, as torchrun sets it, got 2"),
        (COMPLETE | {"WORLD_SIZE": "0"}, "RANK: expected less than WORLD_SIZE=0, as torchrun sets it, got 0"),
        (COMPLETE | {"LOCAL_RANK": "3"}, "LOCAL_RANK: expected less than LOCAL_WORLD_SIZE=2"),
        (COMPLETE | {"MASTER_PORT": "http"}, "MASTER_PORT: expected a whole number, as torchrun sets it, got 'http'"),
        (COMPLETE | {"MASTER_PORT": "70000"}, "MASTER_PORT: expected 1 to 65535, got 70000"),
    ],
)
def test_an_incomplete_environment_is_named(monkeypatch, variables, words):
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words), parallel.join():
        pass


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False), ("x", True), ("", True)])
def test_a_rank_that_is_no_number_is_not_met_with_silence(monkeypatch, rank, speaks):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert parallel.leads() == speaks


def test_wrapped_networks_let_go_of_the_group_before_it_is_left(tmp_path):
    """What holds it last may wait for its threads with Python's lock in hand, and end never."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    wrapped = parallel.World(rank=0, size=2).wrap(torch.nn.Linear(3, 2))
    wrapped(torch.randn(4, 3)).sum().backward()
    parallel.leave()
    assert wrapped.reducer is None and wrapped.logger is None and not dist.is_initialized()
