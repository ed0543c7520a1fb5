"""A thousand steps on the digits: the masks of torch.optim.SGD and a sort, at every step."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels import reference
from edgepop_kernels.backend import native
from edgepop_kernels.recipes.config import OPTIMIZERS
from edgepop_kernels.recipes.edge_popup import EdgePopup
from edgepop_kernels.recipes.trainer import make_optimizer

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
RULE = ek.TopK(0.3)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network():
    torch.manual_seed(0)
    first, last = (ek.FusedSubnetLinear(*sizes, bias=False, rule=RULE) for sizes in ((64, 70), (70, 10)))
    for layer in (first, last):
        ek.init.signed_constant_(layer.weight, RULE.keep, scale="paper")
    return nn.Sequential(first, nn.ReLU(), last)


def selected(layer):
    """The cut as the reference finds it, by sorting."""
    kept = RULE.kept(layer.scores.numel())
    return ek.Cut(reference.select([layer.scores.detach()], [kept], [RULE.of], None)[0], RULE.of)


def assert_one_ulp_apart(a, b):
    """Masks that differ do so where scores differ in their last bits, at most the distance of both from the cut."""
    distance = (a.scores - b.scores).abs().max()
    assert 0 < distance <= 1e-5 * a.scores.abs().max()
    cut = selected(b).threshold
    differ = ek.mask(a.scores, RULE) != ek.mask(b.scores, RULE)
    assert ((b.scores.abs() - cut).abs()[differ] <= 2 * distance).all()


def test_a_thousand_steps_on_digits_have_the_masks_of_torch_and_a_sort():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target)
    ours, theirs = network(), network()
    settings = dict(lr=0.1, momentum=0.9, weight_decay=1e-4)
    optimizer = ek.optim.ScoreSGD(ours, **settings)
    other = torch.optim.SGD([layer.scores for layer in theirs if hasattr(layer, "scores")], **settings)
    cuts = set()
    for step in range(1000):
        rows = torch.arange(64 * step, 64 * step + 64) % len(images)
        x = images[rows]
        optimizer.zero_grad()
        F.cross_entropy(ours(x), labels[rows]).backward()
        optimizer.step()
        cuts.add(tuple(ours[0]._known_cut().data.tolist()))

        for layer in theirs:
            if hasattr(layer, "scores"):
                x = ek.masked_linear(x, layer.weight, layer.scores, layer.rule, cut=selected(layer))
            else:
                x = layer(x)
        other.zero_grad()
        F.cross_entropy(x, labels[rows]).backward()
        other.step()

        same = [torch.equal(ours[i]._known_cut().data, selected(theirs[i]).data) for i in (0, 2)]
        if not all(same):
            for a, b in ((ours[i], theirs[i]) for i in (0, 2)):
                if not torch.equal(a.scores, b.scores):
                    assert_one_ulp_apart(a, b)
            assert not all(torch.equal(ours[i].scores, theirs[i].scores) for i in (0, 2))
            break
    assert len(cuts) > 0.9 * step  # masks moved all the while
    with torch.no_grad():
        assert (ours(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_recipes_train_with_it(name):
    recipe = EdgePopup(optimizer=name)
    model = network()
    optimizer = make_optimizer(recipe, model)
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == recipe.lr
    assert (model[0]._known_cut() is not None) == name.startswith("score-")


def test_a_compiled_training_step_breaks_at_the_optimizer_alone():
    """Of a whole step under torch.compile, torch's optimizer of the same network beside ours."""
    from torch._dynamo.utils import counters

    x, labels = torch.randn(8, 16), torch.arange(8) % 5
    found = {}
    for kind in (ek.optim.ScoreSGD, torch.optim.SGD):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        model = ek.convert(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)), ek.TopK(0.5))
        optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

        def step(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        compiled = torch.compile(step, backend="aot_eager")
        losses = [compiled().item() for _ in range(6)]
        found[kind] = losses, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    (ours, our_graphs, our_breaks), (theirs, their_graphs, their_breaks) = found.values()
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_graphs <= their_graphs and our_breaks <= their_breaks + 1
    torch._dynamo.reset()
