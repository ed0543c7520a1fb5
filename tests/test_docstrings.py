"""Public docstrings: there, sentences, whose subject comes first, with examples that run where a user starts."""

import doctest
import inspect
import re

import pytest
import torch
from torch import nn

import edgepop_kernels as ek
from edgepop_kernels import methods
from edgepop_kernels.compat import dnw, hidden_networks, hidden_networks_mnist, hydra, torchao

PACKAGE = ek.__name__
# First words of phrases that leave a reader to guess what the thing is.
NO_SUBJECT = re.compile(
    r"(What|Which|Whose|Who|Where|When|Whether|How|Of|By|As|In|On|From|To|Under|Told|Said|Undoes|Those|That|The same)\b"
)
SHOWN = [
    *(ek.TopK, ek.GlobalTopK, ek.Threshold, ek.Bernoulli, ek.kept_count),
    *(ek.select, ek.mask, ek.pack_mask, ek.masked_linear),
    *(ek.FusedSubnetConv, ek.FusedSubnetLinear, ek.FusedSupermaskLinear, ek.FusedSparseLinear),
    *(ek.convert, ek.materialize, ek.summary, ek.share_selection, ek.train_weights, ek.use_backend),
    *(ek.masked, ek.masked_weight, hidden_networks.SubnetConv, hidden_networks_mnist.SupermaskLinear),
    *(dnw.SparseConv, hydra.SubnetConv, torchao.SupermaskLinear),
    *(ek.optim.ScoreSGD, ek.init.signed_constant_, ek.save_packed, ek.load_packed, ek.model_card),
    *(ek.interop.register, ek.interop.hidden_networks.state_dict, ek.load_checkpoint),
]


def own(value):
    return (getattr(value, "__module__", None) or "").startswith(PACKAGE)


def public():
    """Every public name, and the public methods and properties of every public class, by a name to show."""
    found = {name: getattr(ek, name) for name in ek.__all__}
    modules = {"init": ek.init, "interop": ek.interop, "hidden_networks": ek.interop.hidden_networks, "optim": ek.optim}
    modules |= {name: getattr(methods, name) for name in methods.__all__}
    compat = (dnw, hidden_networks, hidden_networks_mnist, hydra, torchao)
    modules |= {module.__name__.removeprefix(f"{PACKAGE}."): module for module in compat}
    found |= modules
    for where, module in modules.items():
        inside = {
            n: v
            for n, v in vars(module).items()
            if not n.startswith("_") and (inspect.isfunction(v) or inspect.isclass(v))
        }
        found |= {f"{where}.{n}": v for n, v in inside.items() if v.__module__.startswith(module.__name__)}
    for kind in [value for value in found.values() if inspect.isclass(value)]:
        for base in kind.__mro__:
            for name, value in vars(base).items() if own(base) else ():
                value = getattr(value, "__func__", value)
                if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    found[f"{base.__name__}.{name}"] = value
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_is_a_sentence_that_says_what_the_thing_is_or_does(name):
    value = PUBLIC[name]
    first = inspect.cleandoc(value.__doc__ or inspect.getdoc(value) or "").split("\n\n")[0]
    assert first, "no docstring"
    assert not NO_SUBJECT.match(first), first
    assert first[0].isupper(), first
    assert first.endswith((".", ".)", ":")), first


@pytest.mark.parametrize("value", SHOWN, ids=lambda value: value.__qualname__)
@pytest.mark.filterwarnings("ignore::edgepop_kernels.LeftDense")
def test_examples_of_what_a_user_starts_with_show_what_happens(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(
        inspect.getdoc(value), {"ek": ek, "nn": nn, "torch": torch}, value.__qualname__, None, None
    )
    assert examples.examples
    report = []
    done = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=report.append)
    assert done.failed == 0, "".join(report)
