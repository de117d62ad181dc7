"""Unpack an archive that nobody vouches for: plain files, within one folder, of bounded size.

Neither ``tarfile`` nor ``zipfile`` is asked to extract: each file is read from the archive
and written here, under a name that was looked at first. Links, devices, modes and owners
are not in data sets, so none is ever made.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from unified_se_ss.errors import UserError
from unified_se_ss.progress import progress_bar

BLOCK = 1 << 20
MOST_FILES = 2_000_000
LONGEST_NAME = 1000

# How compressed files begin, and what reads them; unlike tarfile's streams, these notice
# an end that is missing and a checksum that is wrong.
COMPRESSIONS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}

DAMAGED = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that zipfile does not know
    UnicodeError,
)


class Packed(NamedTuple):
    """A file or folder in an archive."""

    name: str
    folder: bool
    size: int
    file: BinaryIO | None


class Unpacked(NamedTuple):
    """How much was unpacked."""

    files: int
    bytes: int


def unpack(archive, folder, most_bytes: int, show: bool = True) -> Unpacked:
    """Unpack a tar (plain or compressed) or zip archive into an empty folder.

    Arguments
    ---------
    archive : str or Path
        What it is is seen from its content, not from its name.
    folder : str or Path
        An empty folder, which is made if need be.
    most_bytes : int
        What it may unpack to, in all.
    show : bool
        Whether to draw a progress bar.

    Returns
    -------
    Unpacked
        Files and bytes that were written.

    Raises
    ------
    UserError
        It is damaged, or holds a name that leads out of the folder, a link, a device, a
        name twice, or more than `most_bytes`. What was written by then is left in
        `folder`, for the caller to remove.

    Example
    -------
    >>> tmp = Path(getfixture("tmpdir"))
    >>> with zipfile.ZipFile(tmp / "a.zip", "w") as file:
    ...     file.writestr("a/b.txt", "text")
    >>> unpack(tmp / "a.zip", tmp / "out", 1000, show=False)
    Unpacked(files=1, bytes=4)
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_zip = zipfile.is_zipfile(archive)
    contents = _zip_contents(archive) if is_zip else _tar_contents(archive, most_bytes)
    files = written = 0
    with progress_bar(
        description=f"unpacking {archive.name}",
        unit="B",
        unit_scale=True,
        disable=not show,
    ) as bar:
        try:
            for number, packed in enumerate(contents, 1):
                if number > MOST_FILES:
                    raise UserError(f"{archive}: holds more than {MOST_FILES:,} files")
                target = folder / _safe(archive, packed.name)
                if packed.folder:
                    _make_folder(archive, target)
                    continue
                left = most_bytes - written
                if packed.size > left:
                    raise _too_much(archive, most_bytes)
                files += 1
                written += _write(archive, packed, target, left, most_bytes, bar)
        except DAMAGED as error:
            raise UserError(
                f"{archive}: is damaged ({str(error) or type(error).__name__}); remove it "
                "and fetch it again"
            ) from error
    return Unpacked(files, written)


class Stream:
    """A tar as it comes out of its compression, no more of it than may be.

    Headers can be made to be large too: the bound holds for all that is read.
    """

    def __init__(self, archive: Path, most_bytes: int):
        with open(archive, "rb") as file:
            start = file.read(6)
        opens = [f for magic, f in COMPRESSIONS.items() if start.startswith(magic)]
        self._file = (opens or [open])[0](archive, "rb")
        self._archive, self._most = archive, most_bytes
        self._left = 2 * most_bytes + 10 * BLOCK  # small files take more in a tar

    def read(self, size: int) -> bytes:
        """The next bytes."""
        block = self._file.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise _too_much(self._archive, self._most)
        return block

    def close(self) -> None:
        """Leave the file."""
        self._file.close()


def _tar_contents(archive: Path, most_bytes: int) -> Iterator[Packed]:
    """What a tar archive holds, in its order; it is read once, from start to end."""
    with (
        closing(Stream(archive, most_bytes)) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for member in tar:
            if member.isdir():
                yield Packed(member.name, True, 0, None)
            elif member.isreg() and not member.issparse():
                yield Packed(member.name, False, member.size, tar.extractfile(member))
            else:
                raise _not_plain(archive, member.name)
        while stream.read(BLOCK):  # to its end, where the compression's checksum is
            pass


def _zip_contents(archive: Path) -> Iterator[Packed]:
    """What a zip archive holds, in its order."""
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
                raise _not_plain(archive, info.filename)
            if info.header_offset < 0:  # zipfile would seek there
                raise zipfile.BadZipFile(f"{info.filename} is said to lie before it")
            if info.is_dir():
                yield Packed(info.filename, True, 0, None)
            else:
                with packed.open(info) as file:
                    yield Packed(info.filename, False, info.file_size, file)


def _safe(archive: Path, name: str) -> PurePosixPath:
    """A name as a path that stays within a folder."""
    path = PurePosixPath(name)
    leaves = path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
    if leaves or (path.parts and ":" in path.parts[0]) or len(name) > LONGEST_NAME:
        raise UserError(
            f"{archive}: holds the name {name[:200]!r}, which leads out of the folder; "
            "refused as a whole, because no data set needs that"
        )
    return path


def _make_folder(archive: Path, folder: Path) -> None:
    """Make a folder; all on the way to it were made here, so none is a link."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{archive}: holds a file where a folder is to be ({folder.name}); refused"
        ) from None


def _write(archive, packed: Packed, target: Path, left: int, most_bytes: int, bar) -> int:
    """Write one file, which must not be there; its bytes are counted as they come."""
    _make_folder(archive, target.parent)
    written = 0
    try:
        file = open(target, "xb")  # noqa: SIM115 (for this error alone)
    except FileExistsError:
        raise UserError(
            f"{archive}: holds the name {packed.name!r} twice; refused"
        ) from None
    with file:
        while block := packed.file.read(BLOCK):
            written += len(block)
            if written > left:
                raise _too_much(archive, most_bytes)
            file.write(block)
            bar.update(len(block))
    if written != packed.size:
        raise tarfile.ReadError(f"{packed.name} ends early")
    return written


def _too_much(archive: Path, most_bytes: int) -> UserError:
    return UserError(
        f"{archive}: unpacks to more than the {most_bytes:,} bytes that are expected; "
        "stopped, it may be made to fill the disk"
    )


def _not_plain(archive: Path, name: str) -> UserError:
    return UserError(
        f"{archive}: {name[:200]!r} is a link, a device or encrypted; refused as a whole, "
        "because data sets hold plain files"
    )
