"""Static neural graphs: channels are nodes, and the edges between them are learned (Wortsman et al. 2019).

    I_v = sum over edges (u, v) of w_uv Z_u        Z_v = f_v(I_v)        edges = the k largest |w_uv| with u < v

Nodes come in blocks, and an edge leads from a block to a later one, so the graph is acyclic and a block is one step.
Every weight trains, edge or not: w_uv moves by <Z_u, -lr dL/dI_v>, which is what a layer that scores itself computes.

>>> import torch
>>> from edgepop_kernels.methods.graphs import StaticGraph
>>> graph = StaticGraph(blocks=(3, 16, 16, 8), edges=100)
>>> graph(torch.randn(2, 3, 8, 8)).shape
torch.Size([2, 8, 8, 8])
>>> small = graph.pruned()  # the same function, without nodes that no output hears of
>>> int(graph.alive().sum()) <= sum(small.blocks) <= 43
True
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import edgepop_kernels as ek

from . import arguments


class ChannelNodes(nn.Module):
    """The function f of a block of nodes, each a channel (N, C, H, W): norm, ReLU, a 3x3 convolution of its own.

    norm: "instance" or "batch", with scale and shift. stride: of the convolution.
    """

    def __init__(self, channels: int, norm: str = "instance", stride: int = 1):
        super().__init__()
        arguments.whole("channels", channels, 1)
        arguments.one_of("norm", norm, ("instance", "batch"))
        arguments.whole("stride", stride, 1)
        self.settings = {"norm": norm, "stride": stride}
        self.norm = nn.InstanceNorm2d(channels, affine=True) if norm == "instance" else nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x).relu())

    @torch.no_grad()
    def chosen(self, nodes: Tensor) -> "ChannelNodes":
        """The functions of some of the nodes alone: int64 indices."""
        small = ChannelNodes(len(nodes), **self.settings).to(self.conv.weight.device).train(self.training)
        state = {name: t if t.dim() == 0 else t[nodes] for name, t in self.state_dict().items()}
        small.load_state_dict(state)
        return small


class StaticGraph(nn.Module):
    """A graph of ``sum(blocks)`` nodes with ``edges`` learned edges; its last block is the output, taken before f.

    Input (N, blocks[0], H, W), what flows into the first block; output (N, blocks[-1], H', W'). norm: of all nodes;
    stride: of the first block, H' is H / stride. One 1x1 convolution per block, wires[i] with a weight of shape (nodes
    of later blocks, blocks[i], 1, 1): w_uv at row v, column u; all are ranked together. ``train_weights`` holds the
    present wiring. Raises ValueError and TypeError.

    >>> graph = StaticGraph((3, 16, 8), edges=50, norm="batch", stride=2)
    >>> graph(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    >>> graph.adjacency().shape, int(graph.adjacency().sum())
    (torch.Size([27, 27]), 50)
    """

    def __init__(self, blocks: tuple[int, ...], edges: int, *, norm: str = "instance", stride: int = 1):
        super().__init__()
        if not isinstance(blocks, Sequence):
            raise TypeError(f"blocks: expected at least two sizes, got {blocks!r}")
        blocks = tuple(blocks)
        for size in blocks:
            arguments.whole("blocks", size, 1)
        if len(blocks) < 2:
            raise ValueError(f"blocks: expected at least two sizes, got {blocks}")
        later = [sum(blocks[i + 1 :]) for i in range(len(blocks) - 1)]
        possible = sum(size * rows for size, rows in zip(blocks, later, strict=False))
        arguments.whole("edges", edges, 1, possible, ", what these blocks allow")
        self.blocks, self.edges = blocks, edges
        self.nodes = nn.ModuleList(ChannelNodes(size, norm, 1 if i else stride) for i, size in enumerate(blocks[:-1]))
        rule = ek.GlobalTopK(share_of(edges, possible))
        self.wires = nn.ModuleList(
            ek.FusedSparseConv(size, rows, 1, bias=False, rule=rule) for rows, size in zip(later, blocks, strict=False)
        )
        # One deviation for all blocks, that of a layer from all senders: otherwise those with few inputs would start
        # with the largest weights, and have most of the edges.
        bound = sum(blocks[:-1]) ** -0.5
        for wires in self.wires:
            nn.init.uniform_(wires.weight, -bound, bound)
        ek.share_selection(self)

    def forward(self, x: Tensor) -> Tensor:
        arguments.channels(x, self.blocks[0], self.blocks[0])
        for i, (nodes, wires) in enumerate(zip(self.nodes, self.wires, strict=True)):
            arriving = wires(nodes(x[:, : self.blocks[i]]))
            x = arriving if i == 0 else x[:, self.blocks[i] :] + arriving
        return x

    @torch.no_grad()
    def adjacency(self) -> Tensor:
        """Bool [nodes, nodes], true at (v, u) for an edge u -> v."""
        total = sum(self.blocks)
        adjacency = torch.zeros(total, total, dtype=torch.bool, device=self.wires[0].weight.device)
        for start, wires in zip(self._starts(), self.wires, strict=False):
            mask = wires.mask()[:, :, 0, 0]
            rows, columns = mask.shape
            adjacency[total - rows :, start : start + columns] = mask
        return adjacency

    @torch.no_grad()
    def alive(self) -> Tensor:
        """The nodes, bool [nodes], that have a path to an output. The others change nothing."""
        adjacency = self.adjacency()
        alive = torch.zeros(len(adjacency), dtype=torch.bool, device=adjacency.device)
        alive[-self.blocks[-1] :] = True
        for start, size in reversed(list(zip(self._starts(), self.blocks[:-1], strict=False))):
            alive[start : start + size] = (adjacency[:, start : start + size] & alive[:, None]).any(0)
        return alive

    @torch.no_grad()
    def pruned(self) -> "StaticGraph":
        """This graph without its dead nodes, its wiring frozen; inputs stay, blocks that died whole are left
        out. Where no edge leads to an output it is a graph of inputs and outputs alone, with ``edges`` 0."""
        alive = self.alive()
        alive[: self.blocks[0]] = True
        chosen = [part.nonzero().flatten() for part in alive.split(list(self.blocks))]
        used = [i for i, part in enumerate(chosen) if len(part)]
        live = self.adjacency()[alive][:, alive]
        edges = int(live.sum())
        # No rule ranks to 0 edges, and none is needed: the wires are frozen below.
        small = StaticGraph(tuple(len(chosen[i]) for i in used), max(edges, 1), **self.nodes[0].settings)
        small.edges = edges
        small.to(live.device).train(self.training)
        for j, i in enumerate(used[:-1]):
            small.nodes[j] = self.nodes[i].chosen(chosen[i])
            wires, later = self.wires[i], alive[-self.wires[i].out_channels :]
            small.wires[j].weight.copy_(wires.weight[later][:, chosen[i]])
            small.wires[j].freeze(wires.mask()[later][:, chosen[i]])
        return small

    def picture(self, path: Path) -> Path:
        """Writes the wiring as a PNG: rows are receiving nodes, columns sending ones, lines the blocks."""
        return picture(self.adjacency(), path, self._starts()[1:])

    def _starts(self):
        return list(itertools.accumulate(self.blocks[:-1], initial=0))


def share_of(edges: int, possible: int) -> float:
    """The fraction to keep for exactly ``edges``: half an edge less, which ``kept_count``'s truncation rounds up."""
    return (edges - 0.5) / possible


def picture(adjacency: Tensor, path: Path, lines: Sequence[int] = ()) -> Path:
    """Writes a wiring, bool [nodes, nodes] with (v, u) for an edge u -> v, as a PNG with ``lines`` between nodes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(adjacency.cpu().numpy(), cmap="binary", interpolation="nearest")
    for start in lines:
        axes.axhline(start - 0.5, linewidth=0.5)
        axes.axvline(start - 0.5, linewidth=0.5)
    axes.set(title=f"{int(adjacency.sum()):,} edges", xlabel="from node", ylabel="to node")
    figure.savefig(path, format="png", dpi=150)
    return path
