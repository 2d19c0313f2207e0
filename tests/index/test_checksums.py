"""Damage of any bit is seen, and told from an end that was never written."""

import json
from pathlib import Path

import pytest

from raysys.index import _checksums
from raysys.index._checksums import (
    CutOffError,
    DamagedError,
    file_checksum,
    sealed,
    sealed_facts,
    unsealed,
    unsealed_facts,
)

RECORD = b"\x00\xff" * 20 + b"rows"
FACTS = {"version": 3, "shards": [3, 4], "settings": {"metric": "l2", "ratio": 0.25, "e": "\u00e9"}}


def _flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("record", [RECORD, b""])
def test_each_bit_of_a_record_counts(record: bytes) -> None:
    content = sealed(record)
    assert unsealed(content) == record
    for bit in range(8 * len(content)):
        with pytest.raises(DamagedError) as caught:
            unsealed(_flipped(content, bit))
        assert caught.type is DamagedError  # of a whole length: an acknowledged change
    with pytest.raises(DamagedError, match="checksum differs"):
        unsealed(content + b"\0")


def test_a_record_without_its_end_was_cut_off() -> None:
    content = sealed(RECORD)
    for length in range(len(content)):
        with pytest.raises(CutOffError):
            unsealed(content[:length])


@pytest.mark.parametrize("indent", [None, 2])
def test_each_bit_of_facts_counts(indent: int | None) -> None:
    content = json.dumps(sealed_facts(FACTS), indent=indent).encode()
    assert unsealed_facts(content) == FACTS
    unseen = []
    for bit in range(8 * len(content)):
        damaged = _flipped(content, bit)
        try:
            assert unsealed_facts(damaged) == FACTS
            unseen.append(damaged)
        except DamagedError:
            pass
    assert unseen == [content.replace(b"00e9", b"00E9")]  # the same text


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"null", b'{"crc32": 1}', b'{"a": 1}'])
def test_other_json_is_damaged(content: bytes) -> None:
    with pytest.raises(DamagedError):
        unsealed_facts(content)


def test_each_bit_of_a_file_and_its_length_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checksums, "_BLOCK", 16)
    file, content = tmp_path / "rows", bytes(range(48))
    file.write_bytes(content)
    expected = file_checksum(file)
    assert file_checksum(file) == expected
    others = [_flipped(content, bit) for bit in range(8 * len(content))]
    others += [content[:length] for length in range(48)]
    others += [content + b"\0", content[16:32] + content[:16] + content[32:]]
    for other in others:
        file.write_bytes(other)
        assert file_checksum(file) != expected
