"""The static neural graph against its definition, node by node; dead nodes; the picture."""

import warnings

import pytest
import torch

import edgepop_kernels as ek
from edgepop_kernels.methods.graphs import StaticGraph

BLOCKS = (3, 5, 4, 2)


def graph(edges=25, **options):
    torch.manual_seed(0)
    return StaticGraph(BLOCKS, edges, **options)


def by_definition(model, x):
    """I_v = sum of w_uv Z_u over the edges, Z_v = f_v(I_v), node after node; gradients flow to all u < v."""
    matrix = x.new_zeros(14, 14)
    starts = (0, 3, 8, 12)
    for i, wires in enumerate(model.wires):
        matrix[14 - wires.out_channels :, starts[i] : starts[i] + BLOCKS[i]] = wires.weight[:, :, 0, 0]
    allowed = torch.zeros(14, 14, dtype=torch.bool)
    for start, size in zip(starts, BLOCKS, strict=True):
        allowed[start + size :, start : start + size] = True
    threshold = matrix.detach()[allowed].abs().sort(descending=True).values[model.edges - 1]
    kept = (matrix.detach().abs() >= threshold) & allowed
    matrix = matrix * kept + (matrix - matrix.detach()) * ~kept
    incoming = [x[:, u] if u < 3 else None for u in range(14)]
    outgoing = []
    for block, (start, size) in enumerate(zip(starts, BLOCKS, strict=True)):
        for v in range(start, start + size):
            if v >= 3:
                incoming[v] = sum(matrix[v, u] * outgoing[u] for u in range(start))
        if block < 3:
            outgoing += model.nodes[block](torch.stack(incoming[start : start + size], 1)).unbind(1)
    return torch.stack(incoming[12:], 1), kept


def test_the_graph_is_its_definition():
    """Values, and the update of every weight u < v, chosen or not (Wortsman et al. 2019)."""
    model = graph()
    x = torch.randn(2, 3, 6, 6)
    y = model(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected, kept = by_definition(model, x)
    expected.backward(dy)
    assert torch.equal(model.adjacency(), kept) and kept.sum() == 25
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)
    assert model.wires[0].weight.grad[:, :, 0, 0][~kept[3:, :3]].any()  # no edges yet, and they learn


@pytest.mark.parametrize("options", [{}, {"norm": "batch", "stride": 2}], ids=str)
@pytest.mark.parametrize("edges", [1, 5, 12, 25, 71])
def test_pruning_dead_nodes_changes_nothing(edges, options):
    model = graph(edges, **options)
    x = torch.randn(2, 3, 6, 6)
    model(x)  # running statistics
    model.eval()
    alive = model.alive()
    adjacency = model.adjacency()
    assert adjacency.sum() == edges
    reach = torch.eye(14, dtype=torch.bool)
    for _ in range(4):
        reach |= (reach.float() @ adjacency.float()) > 0
    assert torch.equal(alive, reach[12:].any(0))
    small = model.pruned()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert sum(small.blocks) == int(alive[3:].sum()) + 3 and small.alive()[small.blocks[0] :].all()


def test_where_no_edge_leads_to_an_output_nothing_is_left():
    """One edge of (2, 3, 2) may end in the middle: the outputs are 0, and so are those of the pruned graph."""
    cut_off = 0
    for seed in range(40):
        torch.manual_seed(seed)
        model = StaticGraph((2, 3, 2), 1, stride=2)
        small, x = model.pruned(), torch.randn(3, 2, 7, 5)
        torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-6)
        if not model.adjacency()[5:].any():
            cut_off += 1
            assert small.blocks == (2, 2) and small.edges == 0 and not small.adjacency().any()
            y = small(x)
            assert y.shape == (3, 2, 4, 3) and not y.any()
            y.sum().backward()
            assert not any(p.grad.any() for p in small.parameters() if p.grad is not None)
            assert small.pruned().blocks == (2, 2)
    assert cut_off > 5  # 6 of the 16 possible edges do


def test_a_block_without_edges_is_no_fault():
    """Its weights get their gradient nevertheless, so nothing warns of it."""
    model = graph(12)
    with torch.no_grad():
        model.wires[1].weight.mul_(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    assert not model.wires[1].mask().any() and model.wires[1].weight.grad.any()


def test_edges_start_evenly_over_the_blocks():
    """Blocks of 8 and of 80 senders have as large a share of their possible edges."""
    model = StaticGraph((8, 80, 40), 1000)
    shares = [wires.mask().float().mean().item() for wires in model.wires]
    assert sum(int(wires.mask().sum()) for wires in model.wires) == 1000
    assert all(abs(share - 1000 / (8 * 120 + 80 * 40)) < 0.06 for share in shares)


def test_a_wiring_can_be_held():
    """train_weights: the edges stay, and only their weights get a gradient."""
    model = graph()
    before = model.adjacency()
    ek.train_weights(model)
    model(torch.randn(2, 3, 6, 6)).square().sum().backward()
    for wires in model.wires:
        assert not wires.weight.grad[~wires.mask()].any()
    with torch.no_grad():
        for wires in model.wires:
            wires.weight.normal_()
    assert torch.equal(model.adjacency(), before) and torch.equal(model.pruned().alive().sum(), model.alive().sum())


def test_two_graphs_of_one_size_rank_their_own_edges():
    """Equal rules, one network: each graph still has its own threshold, for masks and for the plain network too."""
    model = torch.nn.Sequential(graph(), torch.nn.Conv2d(2, 3, 1), graph())
    with torch.no_grad():
        for wires in model[2].wires:
            wires.weight.mul_(100)
    y = model.eval()(x := torch.randn(2, 3, 6, 6))
    assert model[0].adjacency().sum() == model[2].adjacency().sum() == 25
    plain = ek.materialize(model)
    assert sum(int((wires.weight != 0).sum()) for wires in plain[0].wires) == 25
    torch.testing.assert_close(plain(x), y, rtol=1e-4, atol=1e-5)


def test_picture(tmp_path):
    assert graph().picture(tmp_path / "wiring.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(((3,), 1), "blocks"), (((3, 0), 1), "blocks"), (((3, 2), 7), "edges"), (((3, 2), 0), "edges")],
)
def test_bad_input_is_named(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name}: ."):
        StaticGraph(*arguments)


def test_edges_move():
    """Training swaps edges, and keeps their number."""
    model = graph()
    before = model.adjacency()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(8, 3, 6, 6)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    after = model.adjacency()
    assert after.sum() == before.sum() == 25 and not torch.equal(after, before)
    assert ek.kept_count(71, model.wires[0].rule.keep) == 25
