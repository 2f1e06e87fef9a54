"""The methods by the name they have in a job file. Imports a method's module only when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from hpcopt.errors import UsageError, nearest
from hpcopt.importing import find_function
from hpcopt.solvers.checks import is_met

if TYPE_CHECKING:
    from hpcopt.solvers.solver import Solver

SOLVERS: dict[str, str] = {
    "adam": "hpcopt.solvers.adam:Adam",
    "apts": "hpcopt.solvers.apts:APTS",
    "lars": "hpcopt.solvers.lars:LARS",
    "lbfgs": "hpcopt.solvers.lbfgs:LBFGS",
    "nlcg": "hpcopt.solvers.nlcg:NLCG",
    "newton": "hpcopt.solvers.newton:Newton",
    "slimtrain": "hpcopt.solvers.slimtrain:SlimTrain",
    "sgd": "hpcopt.solvers.sgd:SGD",
    "trust_region": "hpcopt.solvers.trust_region:TrustRegion",
}
"""Name in the job file -> "module:Class"."""

HORIZON = "horizon_epochs"
"""The one field that the run fills in."""


def solver_class(name: str) -> type:
    """The class of the method called ``name``: a key of ``SOLVERS``, or 'package.module:Class' of the user's own.

    Raises:
        UsageError: there is no such method, or the user's class is none.
    """
    if ":" in name:
        return _own_class(name)
    if name not in SOLVERS:
        known = ", ".join(sorted(SOLVERS))
        raise UsageError(
            f"solver.name = {name!r} is not a method of hpcopt{nearest(name, SOLVERS)} Known methods: {known}, or "
            "'package.module:Class' for one of your own. Change solver.name in the job file."
        )
    module, _, attribute = SOLVERS[name].partition(":")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def option_names(name: str) -> list[str]:
    """The keys that the ``[solver]`` table may have for the method ``name``, without ``name`` and ``preset``."""
    return [field.name for field in fields(solver_class(name)) if field.name != HORIZON]


def make_solver(name: str, options: Mapping[str, Any], horizon_epochs: float | None = None) -> Solver:
    """Build the method ``name`` from the keys of a ``[solver]`` table.

    Args:
        name: a key of ``SOLVERS``, or 'package.module:Class' of the user's own.
        options: the method's own keys; ``preset`` names a set of values that the other keys override; ``name`` is
            ignored.
        horizon_epochs: length of the run, where schedules end.

    Raises:
        UsageError: unknown method, key or preset, or a value that breaks its rule.
    """
    cls: Any = solver_class(name)
    given = {key: value for key, value in options.items() if key not in ("name", "preset")}
    known = option_names(name)
    for key in given:
        if key not in known:
            raise UsageError(
                f"solver.{key} is not an option of the method {name!r}{nearest(key, known)} "
                f"Known options: {', '.join(known)}. Correct or remove the key."
            )
    values = _preset(cls, name, options.get("preset", "default"), given) | given
    if horizon_epochs is not None and HORIZON in {field.name for field in fields(cls)}:
        values[HORIZON] = horizon_epochs
    for field in fields(cls):
        if field.init and field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise UsageError(
                f"solver.{field.name} is missing: the method {name!r} has no default for it. Give it in [solver]."
            )
    solver: Solver = cls(**values)
    return solver


def _own_class(name: str) -> type:
    """A method of the user's own, which the loop, checkpoints and records can treat as any other."""
    cls: Any = find_function(name, "solver.name")
    methods = [method for method in ("init", "step") if not callable(getattr(cls, method, None))]
    if not (isinstance(cls, type) and is_dataclass(cls)) or methods:
        lacks = f"has no {' and no '.join(methods)}" if methods else "is not a dataclass"
        raise UsageError(
            f"solver.name = {name!r} {lacks}. A method is a frozen dataclass, whose fields are the keys of [solver], "
            "with init(objective) and step(objective, state, batch): see docs/adding-a-method.md."
        )
    return cls


def _preset(cls: Any, name: str, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a preset, but for those that the keys given leave without effect."""
    presets: dict[str, dict[str, Any]] = {"default": {}} | getattr(cls, "PRESETS", {})
    if not isinstance(preset, str) or preset not in presets:
        raise UsageError(
            f"solver.preset = {preset!r} is not a preset of the method {name!r}{nearest(str(preset), presets)} "
            f"Known presets: {', '.join(sorted(presets))}. Change solver.preset."
        )
    values: dict[str, Any] = {field.name: field.default for field in fields(cls)}
    values |= {**presets[preset], **given}
    needs = getattr(cls, "NEEDS", {})
    read = [key for key in presets[preset] if all(is_met(need, values.get) for need in needs.get(key, ()))]
    return {key: presets[preset][key] for key in read}
