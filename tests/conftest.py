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


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
