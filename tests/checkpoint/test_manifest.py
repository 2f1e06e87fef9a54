from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hpcopt.checkpoint import manifest as module
from hpcopt.checkpoint.manifest import FileEntry, Item, Manifest, Part, parse_manifest, read_manifest
from hpcopt.errors import CheckpointError

PART = Part(0, (0, 0), (2, 3), "crc32:0123abcd")
MADE = Manifest(
    step=12,
    ranks=2,
    run="abc",
    created="2026-01-02T03:04:05.678+00:00",
    files=(FileEntry("rank0000.h5", 100, "cd" * 32), FileEntry("rank0001.h5", 50, "ef" * 32)),
    replicated={"w": Item("array", "<f8", (2, 3), (PART,)), "größe": Item("scalar", "<f8", (), (Part(0, (), (), ""),))},
    own=({}, {"x": Item("array", "<f8", (2, 3), (PART,))}),
)


def changed(**fields: object) -> bytes:
    """The manifest as another version might have written it: sound in itself."""
    content = {**json.loads(MADE.text()), **fields}
    del content["digest"]
    return module._text(content).encode()


def test_a_manifest_comes_back_as_it_was() -> None:
    read = parse_manifest(MADE.text().encode(), Path("here"))
    assert read == MADE
    assert read.bytes == 150
    assert json.loads(MADE.text())["step"] == 12, "it is plain JSON"


def test_its_digest_is_of_the_json_without_it() -> None:
    content = json.loads(MADE.text())
    digest = content.pop("digest")
    assert hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest() == digest


def test_no_changed_bit_goes_unnoticed() -> None:
    raw = MADE.text().encode()
    for place in range(len(raw)):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << bit
            with pytest.raises(CheckpointError, match="is damaged"):
                parse_manifest(bytes(damaged), Path("here"))


def test_no_other_length_goes_unnoticed() -> None:
    raw = MADE.text().encode()
    for other in (*(raw[:length] for length in range(len(raw))), raw + b"\n", raw + b" ", b"\n" + raw, b"[" * 100_000):
        with pytest.raises(CheckpointError, match="is damaged"):
            parse_manifest(other, Path("here"))


def test_a_later_schema_is_named_and_is_no_damage() -> None:
    with pytest.raises(CheckpointError, match="has schema 3, and this hpcopt reads up to 2") as found:
        parse_manifest(changed(schema=3), Path("here"))
    assert found.value.exit_status == 4


def test_another_file_is_no_manifest(tmp_path: Path) -> None:
    for other in (b"{}", b"null", b"[1]", b"", b"\xff", changed(format="hpcopt metrics"), changed(schema="1")):
        with pytest.raises(CheckpointError, match="is damaged"):
            parse_manifest(other, Path("here"))
    with pytest.raises(CheckpointError, match="has no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_manifest(tmp_path)
