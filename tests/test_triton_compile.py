"""Every kernel, compiled by the installed triton for GPUs that need not be here: the gate is what ptxas says of it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from edgepop_kernels.backend import triton as backend
from edgepop_kernels.tuning import Problem, Tile, offline
from edgepop_kernels.tuning.table import write_table

# The masked operand goes to wgmma from registers; the weight gradient, masked after its product, from shared memory.
# float32 without tf32 has no tensor cores.
WITHOUT_WGMMA = {"linear, float32", "linear, float32, signs and bits"}
KERNELS = {
    name
    for source in Path(backend.__file__).with_name("kernels").glob("*.py")
    for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)
}
# A device's table is compiled for what its devices are.
FAMILIES = {"a100": 80, "h100": 90, "h200": 90, "b200": 100}
TABLES = sorted(Path(offline.__file__).with_name("tables").glob("*.json"))


def started(capability, *table):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    gate = Path(__file__).with_name("triton_gate.py")
    command = [sys.executable, str(gate), str(capability), *map(str, table)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def compiled(capability, *table):
    return reports_of(started(capability, *table))


def reports_of(gate):
    output, errors = gate.communicate()
    assert gate.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def gates():
    """One process for each capability, at work at once."""
    return {capability: started(capability) for capability in offline.SHARED_LIMIT}


@pytest.fixture(scope="module", params=sorted(offline.SHARED_LIMIT))
def reports(request, gates):
    return reports_of(gates[request.param])


def offenders(reports, bad):
    return [f"{r['case']}: {r['kernel']} {r}" for r in reports if bad(r)]


def is_bad(report):
    return report["spilled"] or report["serialized"] or report["shared"] > offline.SHARED_LIMIT[report["capability"]]


def test_nothing_spills_or_serializes_and_all_fits(reports):
    assert not offenders(reports, is_bad)


def test_every_kernel_is_compiled(reports):
    assert {r["kernel"] for r in reports} == KERNELS


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_every_entry_of_the_tables(file):
    (capability,) = {capability for family, capability in FAMILIES.items() if family in file.stem}
    assert not offenders(compiled(capability, file), is_bad)


def test_the_entries_of_a_table_are_what_is_compiled(tmp_path):
    product, grad = Problem("product", "half", m=4096, n=128, k=4096), Problem("grad", "half", m=4096, n=4096, k=128)
    table, unknown = tmp_path / "table.json", tmp_path / "unknown.json"
    write_table(table, {product: Tile(128, 256, 128, warps=4, stages=2), grad: Tile(64, 64, 64, warps=4, stages=4)})
    reports = compiled(90, table)
    assert {r["kernel"] for r in reports if is_bad(r)} == {"masked_product_kernel"}
    assert {r["kernel"] for r in reports if not is_bad(r)} == {"weight_grad_kernel"}
    write_table(unknown, {dataclasses.replace(product, n=129): Tile(64, 64, 64)})
    with pytest.raises(AssertionError, match="no workload asks for"):
        compiled(90, unknown)


def test_tensor_cores_take_the_masked_weight_from_registers(reports):
    if reports[0]["capability"] != 90:
        assert not any(r["wgmma_from_registers"] or r["wgmma_from_shared"] for r in reports)
        return
    products = [r for r in reports if r["case"] not in WITHOUT_WGMMA]
    masked = [r for r in products if r["kernel"] == "masked_product_kernel"]
    grads = [r for r in products if r["kernel"] == "weight_grad_kernel"]
    assert masked and not offenders(masked, lambda r: r["wgmma_from_shared"] or not r["wgmma_from_registers"])
    assert grads and not offenders(grads, lambda r: not r["wgmma_from_shared"])
