"""How a job file names a function of the user's own; the model's and the data's tests have the rest."""

from __future__ import annotations

import pytest

from hpcopt.errors import UsageError
from hpcopt.importing import find_function


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("math:sqr", "has no function 'sqr'; did you mean 'sqrt'"),
        (".mine:load", "must have the form"),
        ("mine:", "must have the form"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_its_key(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        find_function(name, "data.source")
    assert f"data.source = {name!r}" in str(refused.value)
