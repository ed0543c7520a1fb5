"""What a type checker says of a user's script, and that what it is told of constructors is what they are."""

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.nn import KINDS

PACKAGE = Path(ek.__file__).parent
LAYERS = [
    *(ek.FusedSubnetConv, ek.FusedSubnetConv1d, ek.FusedSubnetConv3d, ek.FusedSubnetLinear),
    *(ek.FusedSparseConv, ek.FusedSparseConv1d, ek.FusedSparseConv3d, ek.FusedSparseLinear),
    *(ek.FusedSupermaskConv, ek.FusedSupermaskConv1d, ek.FusedSupermaskConv3d, ek.FusedSupermaskLinear),
    *(ek.FusedSubnetConvTranspose1d, ek.FusedSparseConvTranspose1d, ek.FusedSupermaskConvTranspose1d),
    *(ek.FusedSubnetConvTranspose2d, ek.FusedSparseConvTranspose2d, ek.FusedSupermaskConvTranspose2d),
]
SCRIPT = """
import torch
import torch.nn.functional as F
from torch import nn

import edgepop_kernels as ek


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = ek.FusedSubnetConv(3, 8, 3, padding=1, bias=False, keep=0.5)
        self.head = ek.FusedSupermaskLinear(8, 10, rule=ek.Bernoulli(), mask_bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
        return y


model = Net()
reveal_type(model.conv.weight)
reveal_type(model.conv.scores)
reveal_type(model.conv.keep)
reveal_type(model.conv.mask())
reveal_type(model.conv.materialize())
model.conv.keep = 0.3
model.conv.rule = ek.TopK(0.3, of="raw")

plain = nn.Sequential(nn.Linear(64, 10))
reveal_type(ek.convert(plain, keep=0.5, init="signed_constant", scale="paper"))
reveal_type(ek.convert(plain, ek.Threshold(), method="supermask", mask_bias=True, exclude=lambda name, m: name == "fc"))
reveal_type(ek.share_selection(model))
reveal_type(ek.summary(model).rows[0].kept)
reveal_type(ek.materialize(model, copy=True))
reveal_type(ek.materialize(ek.FusedSubnetLinear(4, 3)))

optimizer = ek.optim.ScoreSGD(model, lr=0.1, momentum=0.9)
torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
ek.optim.ScoreAdamW(model.parameters(), lr=1e-3, model=model)
F.cross_entropy(model(torch.randn(2, 3, 8, 8)), torch.tensor([1, 2])).backward()
optimizer.step()
ek.train_weights(model, optimizer)


def selected(scores: torch.Tensor, rule: ek.Rule) -> None:
    reveal_type(ek.select(scores, rule))
    reveal_type(ek.select(scores, ek.TopK(0.5)).threshold)
    reveal_type(ek.select(scores, ek.Bernoulli()).bits)
    reveal_type(ek.select_all([scores], [rule]))
    reveal_type(ek.mask(scores, rule))
    reveal_type(ek.masked_linear(scores, scores, None, rule))
    reveal_type(ek.unpack_mask(ek.pack_mask(ek.mask(scores, rule)), scores.shape))


with ek.use_backend("reference"):
    reveal_type(ek.backends())
reveal_type(ek.graphed_step(lambda x: model(x).sum().backward(), model, optimizer, torch.ones(1)))
ek.init.kaiming_normal_(model.conv.weight, keep=0.5, scale="paper", mode="fan_out")
"""
REVEALED = [
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Parameter | None",
    "float",
    "torch._tensor.Tensor",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.container.Sequential",
    "Net",
    "int",
    "Net",
    "torch.nn.modules.module.Module",
    "edgepop_kernels.cut.Cut | edgepop_kernels.cut.Bits",
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "list[edgepop_kernels.cut.Cut | edgepop_kernels.cut.Bits]",
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "torch._tensor.Tensor",
    "dict[str, str | None]",
    "edgepop_kernels.graphed.GraphedStep[Any]",
]
# Each line is an error, of the code behind it.
MISTAKES = """
import torch
from torch import nn
import edgepop_kernels as ek
ek.FusedSubnetConv(3, 8, 3, prune_rate=0.5)  # call-arg
ek.FusedSubnetConv(3, 8)  # call-arg
ek.FusedSubnetLinear(3, 8, keep="half")  # arg-type
ek.FusedSubnetLinear(3, 8, rule=0.5)  # arg-type
ek.FusedSupermaskLinear(3, 8, keep=0.5)  # call-arg
ek.FusedSparseConv1d(3, 8, (3, 3))  # arg-type
ek.TopK(0.5, of="magnitude")  # arg-type
ek.Bernoulli(at_eval="mean")  # arg-type
ek.convert(nn.Linear(3, 3), method="dnw")  # arg-type
ek.convert(nn.Linear(3, 3), kep=0.5)  # call-arg
ek.convert(nn.Linear(3, 3), init="kaiming")  # arg-type
ek.convert(nn.Linear(3, 3), keep=0.5, left="never")  # arg-type
ek.convert([nn.Linear(3, 3)])  # type-var
ek.materialize(nn.Linear(3, 3), copy="yes")  # call-overload
ek.select(torch.ones(3), ek.TopK()).bits  # attr-defined
ek.select(torch.ones(3), ek.Bernoulli()).threshold  # attr-defined
ek.select_all(torch.ones(3), ek.TopK())  # arg-type
ek.summary(nn.Linear(3, 3)).row  # attr-defined
ek.optim.ScoreSGD(nn.Linear(3, 3), learning_rate=0.1)  # call-arg
ek.optim.ScoreAdam(nn.Linear(3, 3), betas=0.9)  # arg-type
ek.init.kaiming_normal_(torch.ones(3, 3), scale="mine")  # arg-type
ek.fused_conv  # attr-defined
"""


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Lines of what mypy says of a script, in strict mode, as of one outside of this project."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed; the extra test has it")
    folder = tmp_path_factory.mktemp("typed")

    def checked(script):
        (folder / "script.py").write_text(script)
        # Tensor.backward and others of torch have no types.
        settings = ("strict = true", "follow_imports = silent", "untyped_calls_exclude = torch")
        (folder / "mypy.ini").write_text("\n".join(("[mypy]", *settings)))
        command = [sys.executable, "-m", "mypy", "--no-pretty", "script.py"]
        environment = os.environ | {"MYPYPATH": str(PACKAGE.parent)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 1) and not done.stderr, done.stderr or done.stdout
        return done.stdout.splitlines()

    return checked


@pytest.mark.slow
def test_a_users_script_type_checks(check):
    said = check(SCRIPT)
    assert not [line for line in said if ": error: " in line]
    revealed = [
        re.search(r'Revealed type is "(?:script\.)?(.*?)"', line).group(1) for line in said if "Revealed" in line
    ]
    assert [text.replace("builtins.", "").replace("script.", "") for text in revealed] == REVEALED


@pytest.mark.slow
def test_a_users_mistakes_are_errors(check):
    found = {}
    for line in check(MISTAKES):
        place = re.match(r"script\.py:(\d+): error: .*\[([a-z-]+)\]$", line)
        if place:
            found.setdefault(int(place.group(1)), place.group(2))
    lines = enumerate(MISTAKES.splitlines(), 1)
    assert found == {i: line.partition("  # ")[2] for i, line in lines if "  # " in line}


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").read_bytes() == b""


def _told(kind):
    """The constructor of a layer as a type checker is told of it: not there at run time, read from the source."""
    module = inspect.getmodule(kind)
    (node,) = (
        n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.ClassDef) and n.name == kind.__name__
    )
    (block,) = (n for n in node.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    (init,) = (n for n in block.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    namespace = vars(module) | {"torch": torch}
    exec(compile(ast.Module([init], []), module.__file__, "exec"), namespace)
    return inspect.signature(namespace["__init__"])


@pytest.mark.parametrize("kind", LAYERS)
def test_a_type_checker_is_told_of_the_constructor_that_there_is(kind):
    (_, *told), real = _told(kind).parameters.values(), inspect.signature(kind).parameters.values()
    assert [(p.name, p.kind, p.default) for p in told] == [(p.name, p.kind, p.default) for p in real]
    assert {p.name: p.annotation for p in told if p.kind is p.KEYWORD_ONLY} == {
        p.name: p.annotation for p in real if p.kind is p.KEYWORD_ONLY
    }


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_materializes_to_what_a_type_checker_is_told(kind):
    plain = next(plain for plain in KINDS if issubclass(kind, plain))
    source = inspect.getsource(kind)
    assert f"def materialize(self) -> nn.{plain.__name__}: ..." in source
    assert type(kind(*((3, 4) if plain is nn.Linear else (3, 4, 1))).materialize()) is plain
