"""The parameters of a checkpoint in a file that other programs read: torch, safetensors or NumPy."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from hpcopt.analysis.checkpoint import Checkpoint
from hpcopt.errors import CheckpointError, UsageError


class ExportError(CheckpointError):
    """The file could not be written; there is nothing of it, and the checkpoint is as it was."""


def export(checkpoint: Checkpoint, target: Path, force: bool = False) -> int:
    """Write all parameters and buffers to one file, under their names in ``state_dict()``.

    The file appears whole or not at all. By its suffix it is

        .pt           a ``state_dict()``, for ``torch.load(path, weights_only=True)`` and ``model.load_state_dict``
        .safetensors  for ``safetensors.torch.load_file`` and all else that reads this format
        .npz          for ``numpy.load``

    Args:
        checkpoint: what to write.
        target: the file; its directory exists.
        force: replace a file that is there.

    Returns:
        The number of tensors.

    Raises:
        UsageError: unknown suffix, there is such a file, no such directory, or nothing to write.
        CheckpointError: the checkpoint is damaged.
        ExportError: it could not be written, for instance because the disk is full.
    """
    target = Path(target)
    check_target(target, force)
    if not checkpoint.tensor_names:
        raise UsageError(f"The checkpoint {checkpoint.path} holds no model, so there is nothing to export.")
    arrays = checkpoint.parameters
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _write(WRITERS[target.suffix], arrays, unfinished)
        os.replace(unfinished, target)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ExportError(
            f"{target} could not be written: {reason}. Nothing of it is left; give a file on a disk with enough space "
            "that this process may write to."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return len(arrays)


def check_target(target: Path, force: bool) -> None:
    """Raise UsageError when a checkpoint cannot be exported to this file."""
    if target.suffix not in WRITERS:
        raise UsageError(
            f"The format of {str(target)!r} is told by its suffix, and {target.suffix!r} is none of "
            f"{', '.join(WRITERS)}. Give a file such as model.pt."
        )
    if not target.parent.is_dir():
        raise UsageError(f"There is no directory {str(target.parent)!r} to write {target.name} to. Make it first.")
    if target.is_dir():
        raise UsageError(f"{str(target)!r} is a directory. Give a file in it, such as {target / 'model.pt'}.")
    if os.path.lexists(target) and not force:
        raise UsageError(f"There is a file {str(target)!r} already. Give another name, or --force to replace it.")


Writer = Callable[[Mapping[str, np.ndarray], Path], None]


def _write(writer: Writer, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a file and wait until it is on the disk. Raises OSError."""
    with open(path, "wb") as file:
        mode = os.fstat(file.fileno()).st_mode
    writer(arrays, path)
    # Some writers make a file of their own, which only its owner may read.
    os.chmod(path, mode & 0o7777)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _write_torch(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    from collections import OrderedDict

    import torch

    state = OrderedDict((name, torch.from_numpy(array)) for name, array in arrays.items())
    with open(path, "wb") as file:
        output = _Output(file)
        try:
            torch.save(state, cast("IO[bytes]", output))
        except Exception as error:
            # What torch raises after a write that failed says nothing of the reason.
            raise output.error or error from None


class _Output:
    """A file for torch to write to that keeps the error it met first."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """As that of the file; the first error is kept as well."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write_safetensors(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UsageError(
            "Files of the suffix .safetensors need the package safetensors: install it (pip install safetensors), or "
            "export to .pt or .npz."
        ) from error
    try:
        # The entry tells some readers that the names are those of a torch state_dict.
        save_file(dict(arrays), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_npz(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    # numpy.savez takes the names as keyword arguments, of which it needs some itself.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


WRITERS: dict[str, Writer] = {".pt": _write_torch, ".safetensors": _write_safetensors, ".npz": _write_npz}
"""The formats, by suffix."""
