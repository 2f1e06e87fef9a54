"""The [data] table: every key is checked by itself, with the value, the rule and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from hpcopt.data.batches import BatchGrowth
from hpcopt.data.options import DataOptions
from hpcopt.errors import UsageError


def test_the_source_alone_is_enough() -> None:
    options = DataOptions("mnist-5k")
    assert options.batch == "full"
    assert options.batch_size is None
    assert DataOptions("x", batch=7).batch_size == 7
    assert (options.growth.factor, options.growth.every, options.growth.tolerance) == (1.0, 3, 0.01)
    assert DataOptions("x", batch_growth=1.5, batch_growth_every=2).growth == BatchGrowth(1.5, 2, 0.01)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"source": ""}, "names the data set"),
        ({"source": 3}, "names the data set"),
        ({"source": "x", "batch": 0}, "batch is 0.*at least 1"),
        ({"source": "x", "batch": "ful"}, 'or "full"'),
        ({"source": "x", "batch": True}, "batch is True"),
        ({"source": "x", "overlap": 1.0}, "overlap is 1.0.*less than 1"),
        ({"source": "x", "overlap": "a"}, "overlap is 'a'"),
        ({"source": "x", "batch_growth": 0.5}, "batch_growth is 0.5.*at least 1"),
        ({"source": "x", "batch_growth_every": 0}, "batch_growth_every is 0"),
        ({"source": "x", "batch_growth_tolerance": "a"}, "batch_growth_tolerance is 'a'"),
        ({"source": "x", "test": 0.0}, "test is 0.0.*a fraction between 0 and 1"),
        ({"source": "x", "test": 1.5}, "test is 1.5"),
        ({"source": "x", "test": 0}, "false for no test set"),
        ({"source": "x", "test": True}, "test is True"),
        ({"source": "x", "task": "clasification"}, r"did you mean 'classification'\? It must be one of"),
        ({"source": "x", "standardize": "feture"}, r"did you mean 'feature'\? It must be one of"),
        ({"source": "x", "augment": "crop_flop"}, r"did you mean 'crop_flip'\? It must be one of"),
        ({"source": "x", "classes": 1}, "classes is 1.*at least 2"),
        ({"source": "x", "limit": 0}, "limit is 0.*at least 1"),
        ({"source": "x", "limit": 2.5}, "limit is 2.5"),
        ({"source": "x", "target": []}, "target is \\[\\]"),
        ({"source": "x", "target": 1.5}, "target is 1.5"),
        ({"source": "x", "target": "inputs", "task": "classification"}, 'task is .*with data.target = "inputs"'),
        ({"source": "x", "target": "inputs", "classes": 3}, "classes is 3, but"),
        ({"source": "x", "target": "inputs", "augment": "crop_flip"}, "augment is 'crop_flip', but"),
        ({"source": "x", "target": "inputs", "standardize_targets": False}, "standardize_targets is False, but"),
        ({"source": "x", "root": 5}, "root is 5"),
    ],
)
def test_what_cannot_be_is_refused(table: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        DataOptions(**table)


@pytest.mark.parametrize("test", [None, False, 1, 500, 0.2, "part.csv"])
def test_all_forms_of_a_test_set_are_allowed(test: Any) -> None:
    assert DataOptions("x", test=test).test == test
