"""Public data sets that can be fetched by name.

Lengths and checksums are the publishers' own: OpenSLR's ``md5sum.txt`` (and, for
LibriSpeech, the SHA-256 sums that torchaudio holds) and Zenodo's record. For WHAM's noise
nobody has published any: what the server says of the length, and the checksum that a zip
file has for each file in it, are all that is checked.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from unified_se_ss.data.corpora.mini_librimix import arrange_mini_librimix
from unified_se_ss.data.download import Patience, Wanted, alone, check_room, download
from unified_se_ss.data.unpack import unpack
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write

OPENSLR = ("https://www.openslr.org", "https://openslr.elda.org")
RECORDS = "What `python -m unified_se_ss.data fetch` has put into this folder.\n"
WHAM = "https://my-bucket-a8b4b49c25c811ee9a7e8bba05fa24c7.s3.amazonaws.com"


@dataclass(frozen=True)
class Archive:
    """One archive of a data set.

    Arguments
    ---------
    urls : tuple of str
        Where it lies, the first of them first.
    contents : str
        The folder in it that is the data.
    unpacked : int
        Bytes that it unpacks to, at most.
    length : int or None
        Bytes; None where nobody has published it.
    checksum : str or None
        ``md5:...`` or ``sha256:...``; None where nobody has published one.
    """

    urls: tuple[str, ...]
    contents: str
    unpacked: int
    length: int | None = None
    checksum: str | None = None

    @property
    def name(self) -> str:
        """The name of its file."""
        return Path(urlsplit(self.urls[0]).path).name


@dataclass(frozen=True)
class PublicSet:
    """A data set that can be fetched.

    Arguments
    ---------
    summary : str
        What it is.
    licence : str
        Its terms.
    archives : tuple of Archive
        What it consists of.
    arrange : callable or None
        Makes what was unpacked into a folder that a recipe takes; called with the folder
        that was fetched to, returns what to do with it, in words.
    """

    summary: str
    licence: str
    archives: tuple[Archive, ...]
    arrange: Callable[[Path], str] | None = None


def _librispeech(number: int, subset: str, length: int, checksum: str) -> Archive:
    """A part of LibriSpeech; FLAC hardly gets smaller by being packed."""
    path = f"/resources/{number}/{subset}.tar.gz"
    urls = tuple(host + path for host in OPENSLR)
    return Archive(urls, f"LibriSpeech/{subset}", 3 * length // 2, length, checksum)


CC_BY = "CC BY 4.0"
SETS = {
    "mini_librimix": PublicSet(
        "MiniLibriMix: 1,000 noisy mixtures of two speakers, for a first real training",
        f"{CC_BY} (speech), CC BY-NC 4.0 (WHAM's noise)",
        (
            Archive(
                ("https://zenodo.org/records/3871592/files/MiniLibriMix.zip",),
                "MiniLibriMix",
                3 * 640_547_371,
                640_547_371,
                "md5:32bda08f4992f584f5703c46ff2321db",
            ),
        ),
        arrange_mini_librimix,
    ),
    "mini_librispeech": PublicSet(
        "Mini LibriSpeech: 5 hours for training, 2 for validation",
        CC_BY,
        (
            _librispeech(
                31, "train-clean-5", 332_954_390, "md5:5df7d4e78065366204ca6845bb08f490"
            ),
            _librispeech(
                31, "dev-clean-2", 126_046_265, "md5:6d7ab67ac6a1d2c993d050e16d61080d"
            ),
        ),
    ),
    **{
        f"librispeech_{subset.replace('-', '_')}": PublicSet(
            f"LibriSpeech {subset}: {hours} hours of read English",
            CC_BY,
            (_librispeech(12, subset, length, f"sha256:{checksum}"),),
        )
        for subset, hours, length, checksum in (
            (
                "dev-clean",
                5.4,
                337_926_286,
                "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
            ),
            (
                "test-clean",
                5.4,
                346_663_984,
                "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
            ),
            (
                "train-clean-100",
                100.6,
                6_387_309_499,
                "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
            ),
            (
                "train-clean-360",
                363.6,
                23_049_477_885,
                "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
            ),
        )
    },
    "wham_noise": PublicSet(
        "WHAM! noise: cafes, restaurants and bars in two channels; 35 GB unpacked",
        "CC BY-NC 4.0",
        (Archive((f"{WHAM}/wham_noise.zip",), "wham_noise", 40_000_000_000),),
    ),
}


def fetch(
    name: str,
    folder,
    url: str | None = None,
    keep_archive: bool = False,
    patience: Patience | None = None,
    show: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Fetch a data set and unpack it; done twice, it is there already.

    Arguments
    ---------
    name : str
        A key of :data:`SETS`.
    folder : str or Path
        Where it goes; what else lies there is left alone.
    url : str, optional
        Another address of the archive, such as a mirror of one's own; it must hold the
        same file.
    keep_archive : bool
        Whether the archive stays after it has been unpacked (default False).
    patience : Patience, optional
        When to give up.
    show : bool
        Whether to draw progress bars.
    say : callable
        Takes the lines that say what was done.

    Raises
    ------
    UserError
        No such set; it cannot be had, is not what was published, or has no room.

    Example
    -------
    >>> fetch("mini_libri_mix", "data")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: mini_libri_mix: there is no such set; there are: \
mini_librimix, mini_librispeech, librispeech_dev_clean, librispeech_test_clean, \
librispeech_train_clean_100, librispeech_train_clean_360, wham_noise
    """
    if name not in SETS:
        raise UserError(f"{name}: there is no such set; there are: {', '.join(SETS)}")
    wanted, folder = SETS[name], Path(folder)
    if url is not None and len(wanted.archives) > 1:
        names = ", ".join(archive.name for archive in wanted.archives)
        raise UserError(f"--url: {name} consists of several archives ({names})")
    _check_writable(folder)
    for archive in wanted.archives:
        urls = archive.urls if url is None else (url,)
        with alone(_record(archive, folder).with_suffix(".lock")):
            fetch_archive(archive, urls, folder, keep_archive, patience, show, say)
    say(f"licence: {wanted.licence}")
    if wanted.arrange is not None:
        say(wanted.arrange(folder))


def fetch_archive(archive, urls, folder, keep_archive, patience, show, say) -> None:
    """Fetch and unpack one archive, unless that was done."""
    target = folder / archive.contents
    if _is_done(archive, folder):
        return say(f"{target}: there already")
    if target.exists():
        raise UserError(
            f"{target}: exists, but was not put there by this command, or not as a whole; "
            "move it away, or choose another folder with -o"
        )
    wanted = Wanted(urls, folder / archive.name, archive.length, archive.checksum)
    _check_room_for_all(archive, wanted)
    if archive.checksum is None:
        say(f"{archive.name}: nobody has published a checksum; its length alone is checked")
    download(wanted, patience, show)
    with _aside(folder, archive) as place:
        unpacked = unpack(wanted.path, place, archive.unpacked, show)
        _check_contents(archive, place)
        _put_in_place(place, folder, archive)
    if not keep_archive:
        wanted.path.unlink()
    say(f"{target}: {unpacked.files:,} files, {unpacked.bytes / 1e9:.2f} GB")


def _check_room_for_all(archive: Archive, wanted: Wanted) -> None:
    """Stop if the disk has no room for what is missing of the archive and its contents."""
    length = archive.length or archive.unpacked // 2
    there = sum(p.stat().st_size for p in (wanted.path, wanted.part) if p.exists())
    check_room(wanted.path.parent, max(0, length - there) + archive.unpacked)


def _check_writable(folder: Path) -> None:
    """Stop if nothing can be put into a folder, which is made if need be."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-o: {folder} is a file; name a folder")
    atomic_write(folder / ".fetched" / "README", RECORDS)


@contextmanager
def _aside(folder: Path, archive: Archive) -> Iterator[Path]:
    """A hidden folder to unpack into; it is gone afterwards, and so are earlier ones."""
    for left_over in folder.glob(f".unpacking-{archive.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    place = folder / f".unpacking-{archive.name}-{uuid.uuid4().hex}"
    try:
        yield place
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: cannot be written ({error.strerror or error}); choose a folder with "
        "write permission and room on the disk"
    )


def _check_contents(archive: Archive, place: Path) -> None:
    """Stop if an archive does not hold what it is fetched for."""
    if not (place / archive.contents).is_dir():
        there = ", ".join(sorted(path.name for path in place.iterdir())[:5]) or "nothing"
        raise UserError(f"{archive.name}: holds no {archive.contents}, but {there}")


def _put_in_place(place: Path, folder: Path, archive: Archive) -> None:
    """Give what was unpacked its place: what is around the data first, the data last.

    What several archives have in common, such as LibriSpeech's README, is left as it is
    where it is there.
    """
    source = place / archive.contents
    for path in sorted(place.rglob("*")):
        around = path.is_file() and source not in path.parents
        target = folder / path.relative_to(place)
        if around and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    atomic_write(_record(archive, folder), json.dumps({"files": _count(source)}))
    target = folder / archive.contents
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)  # in one step, when all of it is there


def _record(archive: Archive, folder: Path) -> Path:
    """Where it is noted what was unpacked."""
    return folder / ".fetched" / f"{archive.name}.json"


def _is_done(archive: Archive, folder: Path) -> bool:
    """Whether an archive was unpacked here and none of its files has gone since."""
    try:
        files = json.loads(_record(archive, folder).read_text(encoding="utf-8"))["files"]
        return _count(folder / archive.contents) >= files > 0
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _count(folder: Path) -> int:
    """Number of files in a folder and those in it."""
    return sum(len(names) for _, _, names in os.walk(folder))
