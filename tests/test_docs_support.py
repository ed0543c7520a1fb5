"""docs/support.md speaks of every backend, op, dtype and instruction set there is, and of what they refuse."""

import re
from pathlib import Path

import pytest
import torch
from isa import INSTRUCTION_SETS

import edgepop_kernels as ek
from edgepop_kernels import backend as dispatch
from edgepop_kernels import ops
from edgepop_kernels.testing import inputs

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "support.md").read_text()
WORDS = ("in CI", "emulated", "native's or Triton's", "Triton's", "torch's own step", "after each layer")


def rows(section):
    """The cells of the table under a heading, its head first."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line] for line in lines]
    return head, body


def test_every_backend_and_every_op_has_its_place():
    head, body = rows("Backend x operation")
    assert [name.split()[0] for name in head[2:]] == list(ek.backends())
    named = [op for row in body for op in re.findall(r"`(\w+)`", row[1])]
    assert set(ops.SCHEMAS) < set(named) and len(named) == len(set(named))
    assert set(named) - set(ops.SCHEMAS) == {"step", "masked_linear_update", "masked_conv2d_update"}
    assert all(cell.startswith(WORDS) for row in body for cell in row[2:])


@pytest.mark.parametrize("op", ["step", "masked_linear_update", "masked_conv2d_update"])
def test_what_a_backend_has_beside_the_ops_is_what_the_table_says(op):
    head, body = rows("Backend x operation")
    (row,) = [row for row in body if f"`{op}`" in row[1]]
    for name, cell in zip(head[2:], row[2:], strict=True):
        own = cell in ("in CI", "emulated")
        assert hasattr(dispatch._BACKENDS[name.split()[0]].ops, op) == own, name


def test_a_dtype_that_is_refused_is_said_to_be_and_no_other():
    head, body = rows("Backend x dtype")
    assert [row[0] for row in body] == list(ek.backends())
    dtypes = [getattr(torch, name) for name in head[1:]]
    assert set(inputs.DTYPES) < set(dtypes)
    for name, *cells in body:
        device = torch.device("cuda" if name == "cuda" else "cpu")
        for dtype, cell in zip(dtypes, cells, strict=True):
            if name == "cuda" and dtype != torch.float64:
                continue  # asks the device for its capability
            assert (dispatch._BACKENDS[name].refuses(device, dtype) is not None) == (cell == "refused"), (name, dtype)


def test_every_instruction_set_has_its_place():
    _, body = rows("Instruction sets of the native backend")
    assert [row[0] for row in body] == INSTRUCTION_SETS
