"""Read the headers of an untrusted tar with bounded memory; every invalid header raises `tarfile.ReadError`."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NoReturn

BLOCK = 512  # bytes; every header and every member starts at a multiple of this
LONGEST_HEADER = 2**20  # bytes of a long name or of other extra fields; tarfile reads them into memory at once
LARGEST_TAR = 2**32 * BLOCK  # bytes; block numbers are stored as 32 bits
EXTRA = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class Header(tarfile.TarInfo):
    """A strict tar header for `tarfile.open(tarinfo=Header)`.

    Plain tarfile reads a long name of any size into memory, expands sparse files, and treats an invalid or incomplete
    header as the end of the tar. This class raises `tarfile.ReadError` in all of these cases.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
        """See `tarfile.TarInfo.frombuf`."""
        if len(buf) < BLOCK:
            raise tarfile.ReadError("it is cut off")
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.count(0) == BLOCK:
                raise  # a block of zeros marks the end of the tar
            raise tarfile.ReadError(f"it is damaged: {error}") from error
        if header.type == tarfile.GNUTYPE_SPARSE:
            header._proc_gnusparse_10()
        if header.size < 0 or (header.type in EXTRA and header.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header

    def _proc_gnusparse_10(self, *_: object) -> NoReturn:
        """Refuse sparse files, because tarfile would read their list of gaps without a limit on its length."""
        raise tarfile.ReadError("it contains a sparse file")


def members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar that was opened with `Header`, without keeping them in memory.

    Raises:
        tarfile.TarError: If a header is invalid, or if the tar is incomplete.
    """
    try:
        for member in tar:
            if member.issparse():
                raise tarfile.ReadError("it contains a sparse file")
            if member.size < 0 or member.offset_data + member.size > LARGEST_TAR:
                raise tarfile.ReadError(f"a header claims {member.size:.0e} bytes")
            yield member
            tar.members = []  # type: ignore[attr-defined]
    except (ValueError, OverflowError, RecursionError) as error:
        raise tarfile.ReadError(f"a header is invalid: {error}") from error
