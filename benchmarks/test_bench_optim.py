"""The optimizer's step with the next forward's cuts, against torch's optimizer alone and with a selection after it."""

from dataclasses import dataclass

import torch
from columns import kth_score
from measure import Contest
from rows import KEEP, RULE
from test_bench_select import RESNET50
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels import reference
from edgepop_kernels.testing import inputs
from edgepop_kernels.tuning import roofline

SETTINGS = {"SGD": dict(lr=0.1, momentum=0.9, weight_decay=1e-4), "Adam": dict(lr=1e-3)}
STREAMS = {"SGD": 5, "Adam": 7}  # arrays read or written: gradient, scores and what the optimizer remembers


@dataclass(frozen=True)
class StepRow:
    """One step for scores of these sizes, each a layer of its own.

    fused   ScoreSGD or ScoreAdam with the cuts of the next forward; update: without them. On a GPU by CUDA C++ where
            it was compiled, whatever runs the other rows: Triton has no step
    fused=, foreach=   torch.optim's own, without a selection; + kthvalue: and GetSubnetFaster's thresholds after it
    """

    label: str
    sizes: tuple[int, ...]
    method: str
    full: bool = False
    compiled = False
    group = "optim"
    columns = ("fused", "update", "torch fused", "torch foreach", "torch fused + kthvalue")
    budget_s = 1.0
    launches = False

    def __str__(self):
        return f"{self.method} {self.label}"

    def contest(self, columns, setup):
        ours, theirs = getattr(ek.optim, f"Score{self.method}"), getattr(torch.optim, self.method)
        settings = SETTINGS[self.method]
        if setup.device.type == "cuda" and ek.backends()["cuda"] is None:
            setup = setup._replace(backend="cuda")
        models = {column: self._layers(setup.device) for column in columns}

        def scores(column):
            return [layer.scores for layer in models[column]]

        def step_of(column):
            if column == "fused":
                return setup.on_its_backend("fused", ours(models[column], **settings).step)
            if column == "update":
                return setup.on_its_backend("fused", ours(scores(column), **settings).step)
            kind = {"fused": True} if "fused" in column else {"foreach": True}
            step = theirs(scores(column), **kind, **settings).step
            if "kthvalue" not in column:
                return step
            return lambda: (step(), [kth_score(s.detach().abs(), KEEP) for s in scores(column)])

        calls = {column: step_of(column) for column in columns}

        def check():
            calls["fused"]()
            calls["torch foreach"]()
            for layer, s in zip(models["fused"], scores("torch foreach"), strict=True):
                torch.testing.assert_close(layer.scores, s, rtol=1e-5, atol=1e-6)
                cut = reference.select([layer.scores.detach()], [RULE.kept(s.numel())], [RULE.of], None)[0]
                assert torch.equal(layer.select().data, cut)

        work = roofline.Work(0.0, 4.0 * STREAMS[self.method] * sum(self.sizes))
        return Contest(check, calls, kernels=[(work, "float32")])

    def _layers(self, device):
        layers = nn.ModuleList()
        for seed, n in enumerate(self.sizes):
            layer = ek.FusedSubnetLinear(1, 1, bias=False, rule=RULE)
            layer.weight = nn.Parameter(torch.ones(1, n, device=device), requires_grad=False)
            layer.scores = nn.Parameter(0.05 * inputs.scores("normal", (1, n), seed).to(device))
            # Ten of these add up under momentum: a step moves a cut by less than 0.1 % of the ranks, as in training.
            layer.scores.grad = 1e-4 * inputs.scores("normal", (1, n), seed + 1000).to(device)
            layers.append(layer)
        return layers


ROWS = [
    StepRow("2359296", (2_359_296,), "SGD"),
    StepRow("ResNet-50", tuple(RESNET50), "SGD"),
    StepRow("ResNet-50", tuple(RESNET50), "Adam", full=True),
]
GPU_ROWS = [StepRow("ResNet-50", tuple(RESNET50), method) for method in SETTINGS]


def test_step(row, column, arena, benchmark):
    arena.enter(row, column, benchmark)
