"""Settings: wrong ones are named, the cosine is the reference's, text and JSON forms give the same recipe."""

import json
import math

import pytest

from edgepop_kernels.recipes import registry
from edgepop_kernels.recipes.dense import Dense
from edgepop_kernels.recipes.edge_popup import EdgePopup
from edgepop_kernels.recipes.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.0}, "keep: expected a number in (0, 1], got 0.0"),
        ({"keep": 1.5}, "keep: expected a number in (0, 1], got 1.5"),
        ({"keep": "half"}, "keep: expected a number in (0, 1], got 'half'"),
        ({"keep": True}, "keep: expected a number in (0, 1], got True"),
        ({"epochs": 0}, "epochs: expected a whole number, at least 1, got 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number, at least 1, got 1.5"),
        ({"batch_size": -3}, "batch_size: expected a whole number, at least 1, got -3"),
        ({"lr": math.nan}, "lr: expected a number above 0, at most 1e+30, got nan"),
        ({"lr": math.inf}, "lr: expected a number above 0, at most 1e+30, got inf"),
        ({"momentum": 1.0}, "momentum: expected a number in [0, 1), got 1.0"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number in [0, 1e+30], got -0.0001"),
        ({"label_smoothing": 1.0}, "label_smoothing: expected a number in [0, 1), got 1.0"),
        ({"warmup": 30}, "warmup: expected fewer than the 30 epochs, got 30"),
        ({"widths": ()}, "widths: expected whole numbers above 0, separated by commas, got ()"),
        ({"widths": "300,x"}, "widths: expected whole numbers above 0, separated by commas, got '300,x'"),
        ({"widths": (300, 0)}, "widths: expected whole numbers above 0, separated by commas, got (300, 0)"),
        ({"seed": -1}, "seed: expected a whole number in [0, 2**32), got -1"),
        ({"threads": -1}, "threads: expected a whole number in [0, 1024], got -1"),
        ({"threads": 1025}, "threads: expected a whole number in [0, 1024], got 1025"),
        ({"threads": "100000000"}, "threads: expected a whole number in [0, 1024], got 100000000"),
        ({"model": "conv3"}, "model: expected one of mlp, small-conv, lenet, conv2, "),
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16, got 'float16'"),
        ({"backend": "fast"}, "backend: expected one of auto, "),
        ({"init": "zeros"}, "init: expected one of signed_constant, "),
        ({"keep": 1.0, "scale": "hidden-networks"}, "scale: expected none or paper with keep 1"),
        ({"channels_last": 1}, "channels_last: expected true or false, got 1"),
        ({"prune_rate": 0.5}, "prune_rate: the method edge-popup has no such setting, got 0.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_with_its_value(settings, words):
    with pytest.raises(ConfigError) as error:
        EdgePopup().override(**settings)
    assert words in str(error.value)


def test_text_and_json_forms_are_read():
    recipe = EdgePopup().override(widths="30,20", lr=1)
    assert recipe.widths == (30, 20)
    assert isinstance(recipe.lr, float)
    assert registry.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert registry.from_dict(Dense(seed=3).to_dict()) == Dense(seed=3)


def test_the_most_threads_are_welcome():
    assert EdgePopup().override(threads="1024").threads == 1024


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match=r"method: expected one of edge-popup, dense, .*, got 'magic'"):
        registry.from_dict({"method": "magic"})


def test_the_cosine_after_warm_up_is_per_epoch():
    recipe = EdgePopup(epochs=14, warmup=4, lr=0.4)
    assert [recipe.lr_at(epoch) for epoch in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for epoch in range(4, 14):
        assert recipe.lr_at(epoch) == pytest.approx(0.2 * (1 + math.cos(math.pi * (epoch - 4) / 10)))
    assert EdgePopup().lr_at(0) == pytest.approx(0.1)
