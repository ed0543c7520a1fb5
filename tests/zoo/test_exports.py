"""Real networks out of here: packed files, ONNX, and transformers' own folders, all from random weights."""

import judge
import pytest
import torch
from networks import NETWORKS
from test_networks import OUTPUT, built, converted, inputs

import edgepop_kernels as ek

# One of each library, and of what exports in seconds. (BEiT and T5 do not export as they are, masks or not.)
EXPORTED = ["ResNet", "Swin", "EVA-02", "BERT", "Llama"]
OF_TRANSFORMERS = [name for name, n in NETWORKS.items() if n.library == "transformers"]


def test_a_packed_file_makes_the_same_network_masked_and_plain(network, tmp_path):
    pytest.importorskip("safetensors")
    model, given, file = converted(network).eval(), inputs(network), tmp_path / "net.safetensors"
    ek.save_packed(model, file)
    again, plain = converted(network, ek.TopK(0.7)).eval(), built(network).eval()
    with torch.no_grad():
        for p in (*again.parameters(), *plain.parameters()):
            p.zero_()
        ek.load_packed(file, again)
        ek.load_packed(file, plain)
        y = judge.run(model, given)
        assert torch.equal(judge.run(again, given), y)
        assert judge.off(judge.run(plain, given), y) <= OUTPUT
    layers = judge.masked(model)
    assert layers and all(torch.equal(again.get_submodule(n).mask(), layer.mask()) for n, layer in layers.items())


@pytest.mark.parametrize("packed", [False, True], ids=["weights", "bits"])
@pytest.mark.parametrize("network", EXPORTED, indirect=True)
@pytest.mark.filterwarnings("ignore")  # the exporter's, about torch itself
def test_onnxruntime_answers_as_the_masked_network_does(network, packed, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, given, file = converted(network).eval(), inputs(network), str(tmp_path / "net.onnx")
    if network.library == "transformers":
        model.config.use_cache = False  # an output that is no tensor
    error = ek.save_onnx(model, file, tuple(given.values()), packed=packed)
    assert error <= 1e-5
    with torch.no_grad():
        y = judge.run(model, given)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    named = {of.name: x.numpy() for of, x in zip(session.get_inputs(), given.values(), strict=True)}
    assert judge.off(torch.from_numpy(session.run(None, named)[0]), y) <= OUTPUT


@pytest.mark.parametrize("network", OF_TRANSFORMERS, indirect=True)
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning")
def test_what_is_materialized_goes_through_save_pretrained(network, tmp_path):
    model, given = converted(network).eval(), inputs(network)
    with torch.no_grad():
        y = judge.run(model, given)
        plain = ek.materialize(model)
        plain.save_pretrained(tmp_path)
        loaded, told = type(plain).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(told[of] for of in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert loaded.state_dict().keys() == plain.state_dict().keys()
        assert judge.off(judge.run(loaded.eval(), given), y) <= OUTPUT
