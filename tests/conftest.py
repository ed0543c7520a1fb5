"""What every test gets: seeded generators, NaN in uninitialised memory, and CUDA only where there is a device."""

import os

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("edgepop", deadline=None, derandomize=True)
hypothesis.settings.load_profile("edgepop")

# Without a device the Triton kernels are proven by Triton's interpreter, which it reads before their import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# torch.empty hands out NaN (the largest value for integers), so an output that a kernel did not write whole shows.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True

# The bounds of float32 are those of float32 products; a GPU's convolutions take tf32 by default, 2^-11 a factor.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def compiled():
    """(compile, the graphs that dynamo made since the start of the test)."""
    torch._dynamo.reset()
    made = []

    def count(graph, inputs):
        made.append(graph)
        return graph

    yield lambda model: torch.compile(model, backend=count, fullgraph=True), made
    torch._dynamo.reset()


def pytest_generate_tests(metafunc):
    """Tests under the other instruction sets of this machine: no item for one that it lacks."""
    import isa  # the package, which may import triton

    for fixture, sets in (("other_isa", isa.others), ("other_isa_for_scores", isa.others_for_scores)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, sets(), indirect=True)


def _switched(request):
    from edgepop_kernels.backend import native

    before = native.compiled.kernels.use_isa(request.param)
    yield
    native.compiled.kernels.use_isa(before)


other_isa = pytest.fixture(_switched, name="other_isa")
other_isa_for_scores = pytest.fixture(_switched, name="other_isa_for_scores")


ALONE = {f"test_{name}.py" for name in ("recipes_parallel", "torch_distributed", "recipes_resume", "first_contact")}


@pytest.hookimpl(tryfirst=True)  # before the choice by markers
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name in ALONE:
            item.add_marker(pytest.mark.alone)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
