"""No kernel reads through the address of a tensor whose values are elsewhere: DTensor, subclasses, transforms."""

import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import edgepop_kernels as ek
from edgepop_kernels.backend import native


@pytest.fixture(scope="module")
def mesh():
    """One process that is a world."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def operands():
    return torch.randn(3, 17), torch.randn(5, 17), torch.randn(5, 17)


@pytest.mark.parametrize("wrapped", [0, 1, 2])
def test_a_dtensor_among_the_operands_of_a_product_is_refused_by_name(mesh, wrapped):
    given = list(operands())
    given[wrapped] = distribute_tensor(given[wrapped], mesh, [Replicate()])
    name = ("x", "weight", "scores")[wrapped]
    with pytest.raises(TypeError, match=f"^{name}: expected a tensor that is whole, got a DTensor; .* fully_shard"):
        ek.masked_linear(*given, ek.TopK(0.5))


def test_a_dtensor_is_not_ranked_by_its_address(mesh):
    scores = distribute_tensor(torch.randn(5, 17), mesh, [Replicate()])
    with pytest.raises(TypeError, match=r"^scores: expected a tensor that is whole, got a DTensor"):
        ek.select(scores, ek.TopK(0.5))


@pytest.mark.parametrize("style", [ColwiseParallel, RowwiseParallel])
@pytest.mark.parametrize("frozen", [False, True])
def test_tensor_parallelism_is_refused_in_the_first_forward(mesh, style, frozen):
    model = ek.convert(nn.Sequential(nn.Linear(12, 32), nn.ReLU()), ek.TopK(0.3))
    if frozen:
        model[0].freeze()
    parallelize_module(model, mesh, {"0": style()})
    with pytest.raises(TypeError, match=r"^\w+: expected a tensor that is whole, .* masks have no tensor parallelism"):
        model(torch.randn(4, 12))


def test_a_summary_of_a_sharded_network_counts_all_of_it(mesh):
    model = ek.convert(nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)), ek.TopK(0.3))
    whole = [(row.kept, row.total) for row in ek.summary(model).rows]
    fully_shard(model, mesh=mesh)
    assert [(row.kept, row.total) for row in ek.summary(model).rows] == whole


@pytest.mark.parametrize("optimizer", [ek.optim.ScoreSGD, ek.optim.ScoreAdam, ek.optim.ScoreAdamW])
def test_score_optimizers_step_dtensors_as_torchs_do(mesh, optimizer):
    start, grad = torch.randn(5, 17), torch.randn(5, 17)
    ours = nn.Parameter(distribute_tensor(start, mesh, [Replicate()]))
    theirs = nn.Parameter(start.clone())
    ours.grad, theirs.grad = distribute_tensor(grad, mesh, [Replicate()]), grad.clone()
    optimizer([ours], lr=0.1).step()
    base = {"ScoreSGD": torch.optim.SGD, "ScoreAdam": torch.optim.Adam, "ScoreAdamW": torch.optim.AdamW}
    base[optimizer.__name__]([theirs], lr=0.1).step()
    assert isinstance(ours, DTensor)
    torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-6, atol=1e-7)


def test_a_fully_sharded_network_trains_as_an_unsharded_one(mesh):
    def trained(shard):
        torch.manual_seed(0)
        model = ek.convert(nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5)), ek.TopK(0.3))
        if shard:
            fully_shard(model, mesh=mesh)
        optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.ones(4, 12)), torch.arange(4)).backward()
            optimizer.step()
        return [getattr(p, "full_tensor", lambda p=p: p)() for p in model.parameters() if p.requires_grad]

    for ours, plain in zip(trained(shard=True), trained(shard=False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_the_native_module_refuses_the_address_0_of_a_tensor_with_elements():
    scores = torch.randn(5, 17)
    cuts = torch.empty(1, 2, dtype=torch.int64)
    rankings = [(0, (1, 1, 5, 17), (0, 0, 17, 1), 0, 40, cuts.data_ptr(), 0, 0, 0)]
    with pytest.raises(TypeError, match="scores: expected a tensor with memory of its own"):
        native.compiled.kernels.select(rankings, 1)
    with pytest.raises(TypeError, match="params: expected a tensor with memory of its own"):
        native.compiled.kernels.step([(0, scores.data_ptr(), [0, 0, 0], 85, ("sgd", [0.0] * 7))], [], 1)
    geometry, absent = (1, 1, 17, 1, 3, 5, 1, 3, 1, 1, 1, 1, 0, 0, 1, 1), (0, 0, (0, 0, 0, 0))
    with pytest.raises(TypeError, match="x: expected a tensor with memory of its own"):
        native.compiled.kernels.conv_forward(geometry, absent, (*absent, 0), (0, 0, (0, 0, 0, 0), 0, 0), 0, absent, 1)


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
@pytest.mark.parametrize(
    ("update", "words"),
    [
        (("lion", [0.0] * 7), "update: expected sgd or adam, got lion"),
        (("adam", [0.0] * 7), "update: expected 10 numbers for adam, got 7"),
        (("sgd", [0.0] * 10), "update: expected 7 numbers for sgd, got 10"),
    ],
)
def test_an_optimizers_update_is_known_by_its_name(update, words):
    value, grad = torch.zeros(3), torch.zeros(3)
    with pytest.raises(ValueError, match=words):
        native.compiled.kernels.step([(value.data_ptr(), grad.data_ptr(), [0, 0, 0], 3, update)], [], 1)


@pytest.mark.parametrize("rule", [ek.TopK(0.5), ek.Threshold(0.5), ek.Percentile(0.5)])
def test_torch_func_differentiates_masked_products(rule):
    x, weight, scores = operands()

    def loss(scores, x):
        return ek.masked_linear(x, weight, scores, rule).square().sum()

    got = torch.func.grad(loss, argnums=(0, 1))(scores, x)
    leaves = scores.clone().requires_grad_(), x.clone().requires_grad_()
    want = torch.autograd.grad(loss(*leaves), leaves)
    assert all(map(torch.equal, got, want))


def test_torch_func_differentiates_masked_convolutions_and_a_whole_network():
    images = torch.randn(2, 3, 5, 5)
    model = ek.convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 5)), ek.TopK(0.5))
    scores = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(scores):
        return torch.func.functional_call(model, scores, (images,)).square().sum()

    got = torch.func.grad(loss)({name: p.detach() for name, p in scores.items()})
    want = torch.autograd.grad(model(images).square().sum(), list(scores.values()))
    for name, gradient in zip(scores, want, strict=True):
        torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-6)
    again = torch.autograd.grad(model(images).square().sum(), list(scores.values()))
    assert all(map(torch.equal, again, want))  # the transform has left nothing behind


def test_vmap_is_refused_in_a_sentence():
    x, weight, scores = operands()
    model = ek.convert(nn.Sequential(nn.Linear(17, 5)))
    stacked = {name: torch.stack([p.detach()] * 2) for name, p in model.named_parameters()}
    for function, batch in (
        (lambda x: ek.masked_linear(x, weight, scores, ek.TopK(0.5)), x[None]),
        (lambda s: ek.masked_linear(x, weight, s, ek.TopK(0.5)), scores[None]),
        (lambda s: ek.masked_linear(x, weight, s, ek.Bernoulli()), scores[None]),
        (lambda x: model(x), x[None]),
        (lambda p: torch.func.functional_call(model, p, (x,)), stacked),
    ):
        with pytest.raises(NotImplementedError, match=r"^vmap: masked products and masks have no batching rule; pass"):
            torch.func.vmap(function, randomness="different")(batch)


def test_forward_mode_is_refused_in_a_sentence():
    x, weight, scores = operands()
    images, filters = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    for function, given in (
        (lambda x: ek.masked_linear(x, weight, scores, ek.TopK(0.5)), x),
        (lambda x: ek.masked_conv2d(x, filters, filters.abs(), ek.TopK(0.5)), images),
    ):
        with pytest.raises(NotImplementedError, match=r"^forward mode: masked products have no jvp; use backward"):
            torch.func.jvp(function, (given,), (given,))
        # One row of the identity at a time, which torch says is slow.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            rows = torch.func.jacrev(function)(given).flatten(end_dim=-given.dim() - 1)
        leaf = given.clone().requires_grad_()
        y = function(leaf).flatten()
        for i in (0, len(y) - 1):
            torch.testing.assert_close(rows[i], torch.autograd.grad(y[i], leaf, retain_graph=True)[0])


@pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
def test_a_dual_tensor_is_refused_in_the_same_words():
    x, weight, scores = operands()
    for gradients in (True, False):  # tangents go forward without a graph, too
        with (
            torch.set_grad_enabled(gradients),
            forward_ad.dual_level(),
            pytest.raises(NotImplementedError, match=r"^forward mode: masked products"),
        ):
            ek.masked_linear(forward_ad.make_dual(x, x), weight, scores, ek.TopK(0.5))
