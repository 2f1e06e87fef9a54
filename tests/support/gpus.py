"""Machines with GPUs, pretended."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch


def pretend(monkeypatch: pytest.MonkeyPatch, uuids: Sequence[str]) -> list[int]:
    """Let torch see GPUs with these UUIDs; returns the list of those that were made the current one."""
    chosen: list[int] = []
    properties = [SimpleNamespace(name="Pretended GPU", uuid=uuid, total_memory=1 << 34) for uuid in uuids]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(uuids))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    # Put back after the test what a device changes for the whole process.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    return chosen
