"""Functions and classes of the user's own, named 'package.module:function' in a job file."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcopt.errors import UsageError, nearest


def find_function(name: str, key: str) -> Callable[..., Any]:
    """Import 'package.module:function'; the current directory is searched as well.

    Args:
        name: the value of the key.
        key: the key of the job file, for messages, for example "model.name".

    Raises:
        UsageError: the name has another form, or there is no such module or function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise UsageError(f"{key} = {name!r} must have the form 'package.module:function'.")
    module = _import(name, key, module_name)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [word for word in vars(module) if callable(getattr(module, word)) and not word.startswith("_")]
        hint = nearest(attribute, known)
        raise UsageError(
            f"{key} = {name!r}: the module {module_name!r} ({getattr(module, '__file__', 'built in')}) has no "
            f"function {attribute!r}{hint} Define it there or correct the name."
        )
    return function  # type: ignore[no-any-return]


def _import(name: str, key: str, module_name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does, which the command `hpcopt` does not
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UsageError(f"{key} = {name!r}: importing {module_name!r} failed: {error}.") from error
        hint = nearest(module_name, [path.stem for path in Path.cwd().glob("*.py")])
        raise UsageError(
            f"{key} = {name!r}: there is no module {module_name!r} in the current directory ({here}) or in "
            f"Python's path{hint} Start hpcopt where the module is, or put its folder into PYTHONPATH."
        ) from error
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"{key} = {name!r}: importing {module_name!r} failed: {error}.") from error
