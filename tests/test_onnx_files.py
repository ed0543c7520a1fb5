"""ONNX of masked networks: onnxruntime answers as torch does, from weights as they are and from bits."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels.export import onnx as exporting

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if not exporting.installed(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install 'edgepop_kernels[onnx]'"
)

NETWORKS = {
    "signs": ("subnet", ek.TopK(0.3), "signed_constant", {}),
    "values": ("subnet", ek.TopK(0.3), "kaiming_normal", {}),
    "all kept": ("subnet", ek.TopK(1.0), "kaiming_normal", {}),
    "one kept": ("subnet", ek.TopK(1e-9), "kaiming_normal", {}),
    "global": ("subnet", ek.GlobalTopK(0.4), "unsigned_constant", {}),
    "rescaled": ("supermask", ek.Threshold(0.5), "signed_constant", {"rescale": True, "mask_bias": True}),
    "drawn": ("supermask", ek.Bernoulli(), "kaiming_normal", {"mask_bias": True}),
    "wired": ("sparse", ek.TopK(0.2), "kaiming_normal", {}),
}


def network(method="subnet", rule=NETWORKS["signs"][1], init="signed_constant", options=None):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12, stride=2),
        nn.Conv2d(12, 18, 3, groups=3, dilation=2, padding=2),
        nn.Flatten(2),
        nn.Conv1d(18, 7, 5, padding=2),
        nn.Flatten(),
        nn.Linear(7 * 25, 17),
        nn.ReLU(),
        nn.Linear(17, 10, bias=False),
    )
    ek.convert(model, rule, method=method, init=init, left="ignore", **(options or {}))
    ek.share_selection(model)
    model(torch.randn(5, 3, 11, 11))  # moves the batch norm
    return model


def session(file):
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def answers(file, *inputs):
    opened = session(file)
    names = [given.name for given in opened.get_inputs()]
    return [torch.from_numpy(y) for y in opened.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("packed", [False, True], ids=["floats", "packed"])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_answers_as_torch_does(name, packed, file):
    model = network(*NETWORKS[name])
    if name == "drawn":
        ek.train_weights(model)  # one draw for both
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with torch.no_grad():
        error = ek.save_onnx(model, file, torch.randn(4, 3, 11, 11), packed=packed)
    assert error <= 1e-5 and model.training
    assert all(torch.equal(model.state_dict()[key], t) for key, t in before.items())
    model.eval()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 11, 11)
        y = model(x)
        (found,) = answers(file, x)
        assert found.shape == y.shape and (found - y).norm() <= 1e-5 * y.norm()


@pytest.mark.parametrize("name", ["signs", "values"])
def test_a_packed_file_has_bits_for_weights_and_a_runtime_the_same_floats(name, file):
    import onnx

    model = network(*NETWORKS[name])
    ek.save_onnx(model, file, torch.randn(1, 3, 11, 11), packed=True)
    program = onnx.load(file)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in program.graph.initializer}
    for layer, m in ((n, m) for n, m in model.named_modules() if hasattr(m, "packed_mask")):
        assert f"{layer}.weight" not in held
        numel, bits = m.weight.numel(), held[f"{layer}.weight.mask.bits"]
        assert bits.nbytes == -(-numel // 8)
        assert bits.tobytes() == bytes(m.packed_mask()[: bits.size].tolist())
        of_weight = sum(a.nbytes for n, a in held.items() if n.startswith(f"{layer}.weight.") and ".bits" not in n)
        assert of_weight < 200 + (4 * m.mask().sum() if name == "values" else 0)
    # The weights themselves, as an output of the graph.
    program.graph.output.append(onnx.helper.make_tensor_value_info("3.weight", onnx.TensorProto.FLOAT, [12, 1, 3, 3]))
    _, weight = answers(program.SerializeToString(), torch.randn(1, 3, 11, 11))
    assert torch.equal(weight, model[3].effective_weight())


def test_packed_files_are_small(file):
    model = ek.convert(nn.Sequential(nn.Linear(300, 500), nn.Linear(500, 10)), keep=0.3, init="signed_constant")
    ek.save_onnx(model, file, torch.randn(1, 300))
    whole = file.stat().st_size
    ek.save_onnx(model, file, torch.randn(1, 300), packed=True)
    assert whole > 4 * 155_000 and file.stat().st_size < 155_000 / 4 + 10_000


def test_a_file_says_what_it_was_given_and_nothing_of_this_machine(file):
    import onnx

    ek.save_onnx(network(), file, torch.randn(2, 3, 11, 11), accuracy=0.5, names=["a", "é"])
    said = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert said == {"accuracy": 0.5, "names": ["a", "é"]}
    for place in (Path(__file__).parent.parent, Path(torch.__file__).parent):
        assert str(place).encode() not in file.read_bytes()


class Pair(nn.Module):
    """Tokens and a vector in, two outputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.first = ek.FusedSubnetLinear(8, 8, keep=0.3)
        self.again = self.first  # under two names

    def forward(self, tokens, x):
        y = self.again(self.first(self.embedding(tokens)).mean(1) + x)
        return y, y.argmax(1)


@pytest.mark.parametrize("packed", [False, True], ids=["floats", "packed"])
def test_several_inputs_integers_and_outputs(packed, file):
    model = Pair()
    tokens, x = torch.randint(50, (3, 6)), torch.randn(3, 8)
    assert ek.save_onnx(model, file, (tokens, x), packed=packed) <= 1e-5
    found, expected = answers(file, tokens, x), model(tokens, x)
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_an_answer_that_differs_is_refused_and_nothing_is_written(file, monkeypatch):
    exported = exporting._exported

    def damaged(*args, **kwargs):
        program = exported(*args, **kwargs)
        (weight,) = [t for t in program.graph.initializer if t.name == "8.weight"]
        values = torch.frombuffer(bytearray(weight.raw_data), dtype=torch.float32) * 1.001
        weight.raw_data = values.numpy().tobytes()
        return program

    monkeypatch.setattr(exporting, "_exported", damaged)
    with pytest.raises(RuntimeError, match=r"onnxruntime's answers to 1 random inputs are .*e-04 from torch's"):
        ek.save_onnx(network(), file, torch.randn(2, 3, 11, 11))
    with pytest.raises(RuntimeError, match=r"packed: torch exported 8\.weight in another form"):
        ek.save_onnx(network(), file, torch.randn(2, 3, 11, 11), packed=True)
    assert not file.exists()


def test_without_onnxruntime_nothing_is_compared_and_the_rest_is_asked_for(file, monkeypatch):
    x = torch.randn(2, 3, 11, 11)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert ek.save_onnx(network(), file, x) is None and file.exists()
    file.unlink()
    for name in ("onnxscript", "onnx"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"ONNX needs {name}, .*pip install 'edgepop_kernels\[onnx\]'"):
            ek.save_onnx(network(), file, x)
    assert not file.exists()


def test_bad_input_is_told_before_anything_runs(file):
    model = network()
    for example, words in (
        ("x", "example: expected a tensor or a tuple of tensors, got str"),
        ((torch.ones(2), None), "example: expected a tensor or a tuple of tensors, got NoneType"),
        (torch.ones(2, dtype=torch.bfloat16), "example: expected float32, float64, float16 or integers, got"),
    ):
        with pytest.raises(TypeError, match=words):
            ek.save_onnx(model, file, example)
    for example in (torch.ones(()), torch.ones(0, 3)):
        with pytest.raises(ValueError, match="example: expected inputs with a batch as their first dimension"):
            ek.save_onnx(model, file, example)
    with pytest.raises(TypeError, match="score: expected finite numbers"):
        ek.save_onnx(model, file, torch.randn(2, 3, 11, 11), score=float("nan"))
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        ek.save_onnx(3, file, torch.ones(2))
    assert not file.exists()
