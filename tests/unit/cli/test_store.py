"""When an object of the store is downloaded to compare it, from entries as stores list them."""

from __future__ import annotations

import pytest

from darkroom_cli.store import Entry, is_content

HELLO_MD5 = "5d41402abc4b2a76b9719d911017c592"


@pytest.mark.parametrize(
    ("entry", "stored", "same", "downloads"),
    [
        (Entry(5, HELLO_MD5), b"hello", True, 0),
        (Entry(6, HELLO_MD5), b"hello!", False, 0),
        (Entry(5, f"{HELLO_MD5}-1"), b"hello", True, 1),  # multipart
        (Entry(5, "0" * 32), b"hello", True, 1),  # encrypted by the store: looks like an MD5 and is none
        (Entry(5, "0" * 32), b"other", False, 1),
    ],
)
def test_an_object_is_downloaded_only_where_size_and_etag_leave_it_open(
    entry: Entry, stored: bytes, *, same: bool, downloads: int
) -> None:
    reads: list[bytes] = []

    def read() -> bytes:
        reads.append(stored)
        return stored

    assert is_content(entry, b"hello", read=read) is same
    assert len(reads) == downloads
