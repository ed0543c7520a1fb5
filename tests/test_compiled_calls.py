"""Networks under torch.compile: in one piece under every rule, and none anew for what is called beside them."""

import pytest
import torch
from torch import nn

import edgepop_kernels as ek

RULES = [
    *(ek.TopK(0.5), ek.Percentile(0.5), ek.GlobalTopK(0.5, at_least=0.1), ek.NM(1, 2), ek.Block(0.5, (2, 2))),
    *(ek.Channels(0.5), ek.Threshold(), ek.Threshold(0.01, of="abs", inclusive=True), ek.Bernoulli()),
]


def network(rule):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 10)
    )
    method = "supermask" if type(rule) in (ek.Threshold, ek.Bernoulli) else "subnet"
    model = ek.convert(plain, rule, method=method, left="ignore")
    return ek.share_selection(model) if rule.together else model


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_network_is_one_graph_under_every_rule(compiled, rule):
    compile, made = compiled
    model, x = network(rule), torch.randn(3, 4, 4, 4)
    model(x)  # the first forward is watched by hooks, which go
    run = compile(model)
    for _ in range(2):
        torch.manual_seed(1)  # of a draw
        found = run(x)
        torch.manual_seed(1)
        expected = model(x)
        grads = [torch.autograd.grad(y.square().sum(), model[0].scores)[0] for y in (found, expected)]
        if not rule.fresh:  # where draws of a compiled forward have seeds of their own
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(*grads)
        assert grads[0].isfinite().all() and grads[0].any()
    assert len(made) == 1


@pytest.mark.parametrize("rule", [*RULES, ek.Bernoulli(at_eval="round")], ids=str)
def test_training_and_evaluation_are_a_graph_each(compiled, rule):
    compile, made = compiled
    model, x = network(rule), torch.randn(3, 4, 4, 4)
    model(x)
    run = compile(model)
    for _ in range(3):
        model.train()
        run(x).sum().backward()
        model.eval()
        with torch.no_grad():
            found = run(x)
            if rule != ek.Bernoulli():
                torch.testing.assert_close(found, model(x))
    assert len(made) == 2


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_called_beside_it_compiles_nothing_anew(compiled, rule):
    compile, made = compiled
    model, x = network(rule), torch.randn(3, 4, 4, 4)
    model(x)
    run = compile(model)
    run(x).sum().backward()
    others = [
        lambda: model(x),
        lambda: model(torch.randn(7, 4, 4, 4)),
        lambda: network(ek.TopK(0.3))(x),
        lambda: ek.masked_linear(torch.randn(2, 6), torch.randn(8, 6), torch.randn(8, 6), ek.TopK(0.5)),
        lambda: model[0].mask(),
        lambda: str(ek.summary(model)),
        lambda: ek.materialize(model, copy=True)(x),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: torch.optim.SGD(model.parameters(), lr=0.1).step(),
    ]
    for other in others:
        other()
        run(x).sum().backward()
    assert len(made) == 1
