"""Every kernel, compiled by the installed triton for GPUs that need not be here: the gate is what ptxas says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is for Linux only")

from edgepop_kernels.tuning import offline

# The masked operand goes to wgmma from registers; the weight gradient, masked after its product, from shared memory.
# float32 without tf32 has no tensor cores.
WITHOUT_WGMMA = {"linear, float32"}


@pytest.fixture(scope="module", params=sorted(offline.SHARED_LIMIT))
def reports(request):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    gate = Path(__file__).with_name("triton_gate.py")
    command = [sys.executable, str(gate), str(request.param)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def offenders(reports, bad):
    return [f"{r['case']}: {r['kernel']} {r}" for r in reports if bad(r)]


def test_nothing_spills_or_serializes_and_all_fits(reports):
    assert len(reports) > 20
    limit = offline.SHARED_LIMIT[reports[0]["capability"]]
    assert not offenders(reports, lambda r: r["spilled"] or r["serialized"] or r["shared"] > limit)


def test_tensor_cores_take_the_masked_weight_from_registers(reports):
    if reports[0]["capability"] != 90:
        assert not any(r["wgmma_from_registers"] or r["wgmma_from_shared"] for r in reports)
        return
    products = [r for r in reports if r["case"] not in WITHOUT_WGMMA]
    masked = [r for r in products if r["kernel"] == "masked_product_kernel"]
    grads = [r for r in products if r["kernel"] == "weight_grad_kernel"]
    assert masked and not offenders(masked, lambda r: r["wgmma_from_shared"] or not r["wgmma_from_registers"])
    assert grads and not offenders(grads, lambda r: not r["wgmma_from_shared"])
