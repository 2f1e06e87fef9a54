"""What lies where in a checkpoint of a run: names of its contents, as paths in the HDF5 files.

model/<layer>/<tensor>    the point that the run delivers: what ``state_dict()`` of the model holds
best/<layer>/<tensor>     the same of the best point so far; missing when that is the point itself
solver/<key>              the state of the method
loop/<key>                where the run stands: iterations, batches, work, best figures
own/...                   what belongs to one rank: its part of the state, its running statistics
"""

from __future__ import annotations

from collections.abc import Iterable

MODEL = "model"
BEST = "best"
SOLVER = "solver"
LOOP = "loop"


def tensor_path(group: str, name: str) -> str:
    """Where the tensor ``name`` of a ``state_dict()`` lies in ``group``.

    >>> tensor_path("model", "layers.0.weight")
    'model/layers.0/weight'
    >>> tensor_path("model", "scale")
    'model/scale'

    A slash in a module's name is written as %2F.
    """
    name = name.replace("%", "%25").replace("/", "%2F")
    layer, _, tensor = name.rpartition(".")
    return f"{group}/{layer}/{tensor}" if layer else f"{group}/{tensor}"


def tensor_name(path: str) -> str:
    """The name in ``state_dict()`` of what lies at ``path``.

    >>> tensor_name("model/layers.0/weight")
    'layers.0.weight'
    >>> tensor_name(tensor_path("best", "heads.a/b.bias"))
    'heads.a/b.bias'
    """
    return ".".join(path.split("/")[1:]).replace("%2F", "/").replace("%25", "%")


def in_group(group: str, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that lie in ``group``, in their order."""
    return [name for name in names if name.startswith(f"{group}/")]
