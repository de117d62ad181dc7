"""Public data sets by name, by pooch: ``python -m unified_se_ss.data fetch NAME -o FOLDER``.

Checksums are the publishers' own: OpenSLR's ``md5sum.txt`` (and, for LibriSpeech, the
SHA-256 sums that torchaudio holds) and Zenodo's record. For WHAM's noise nobody has
published any: the CRC that a zip file has for each file in it is all that is checked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from unified_se_ss.data import audio
from unified_se_ss.data.cache import atomic_folder, link_or_copy
from unified_se_ss.data.corpora import list_audio
from unified_se_ss.errors import UserError, report_error

OPENSLR = ("https://www.openslr.org", "https://openslr.elda.org")
ZENODO = "https://zenodo.org/records/3871592/files"
WHAM = "https://my-bucket-a8b4b49c25c811ee9a7e8bba05fa24c7.s3.amazonaws.com"
CC_BY = "CC BY 4.0"
TRIES, TIMEOUT = 3, 30.0  # seconds in which nothing arrives
BLOCK = 1 << 20
EPILOG = """\
A set that is there is left as it is. A file that was interrupted begins anew; for large
ones `wget -c` goes on, and what it left in FOLDER is checked and unpacked here. Proxies and
certificates come from the environment: HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE. Nothing
is written outside FOLDER (docs/security.md).
"""


class Archive(NamedTuple):
    """One archive of a data set.

    urls : where it lies; those after the first are tried where the ones before fail.
    contents : the folder in it that is the data.
    checksum : ``md5:...`` or ``sha256:...``; None where nobody has published one.
    """

    urls: tuple[str, ...]
    contents: str
    checksum: str | None


class PublicSet(NamedTuple):
    """A data set that can be fetched; its size in GB is that of the archives."""

    summary: str
    size: float
    licence: str
    archives: tuple[Archive, ...]


def _librispeech(number: int, subset: str, checksum: str) -> Archive:
    urls = tuple(f"{host}/resources/{number}/{subset}.tar.gz" for host in OPENSLR)
    return Archive(urls, f"LibriSpeech/{subset}", checksum)


_MINI_LIBRIMIX_MD5 = "md5:32bda08f4992f584f5703c46ff2321db"
_HOURS_AND_SIZES = ((5.4, 0.3), (5.4, 0.3), (100.6, 6.4), (363.6, 23.0))
_SHA256 = {
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
}
SETS = {
    "mini_librimix": PublicSet(
        "MiniLibriMix: 1,000 noisy mixtures of two speakers, for a first real training",
        0.6,
        f"{CC_BY} (speech), CC BY-NC 4.0 (WHAM's noise)",
        (Archive((f"{ZENODO}/MiniLibriMix.zip",), "MiniLibriMix", _MINI_LIBRIMIX_MD5),),
    ),
    "mini_librispeech": PublicSet(
        "Mini LibriSpeech: 5 hours for training, 2 for validation",
        0.5,
        CC_BY,
        (
            _librispeech(31, "train-clean-5", "md5:5df7d4e78065366204ca6845bb08f490"),
            _librispeech(31, "dev-clean-2", "md5:6d7ab67ac6a1d2c993d050e16d61080d"),
        ),
    ),
    **{
        f"librispeech_{subset.replace('-', '_')}": PublicSet(
            f"LibriSpeech {subset}: {hours} hours of read English",
            size,
            CC_BY,
            (_librispeech(12, subset, f"sha256:{checksum}"),),
        )
        for (subset, checksum), (hours, size) in zip(_SHA256.items(), _HOURS_AND_SIZES)
    },
    "wham_noise": PublicSet(
        "WHAM! noise: cafes, restaurants and bars in two channels; 35 GB unpacked",
        17.7,
        "CC BY-NC 4.0",
        (Archive((f"{WHAM}/wham_noise.zip",), "wham_noise", None),),
    ),
}

# ------------------------------------------------------------------ fetching


def fetch(name: str, folder, url: str | None = None, keep_archive: bool = False) -> None:
    """Fetches a data set and unpacks it; what is there already is left as it is.

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
        Keep the archive after it has been unpacked (default False).

    Raises
    ------
    UserError
        No such set; it cannot be had, or is not what was published.

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
        raise UserError(f"--url: {name} consists of several archives")
    for archive in wanted.archives:
        target = folder / archive.contents
        if target.exists():
            print(f"{target}: there already")
            continue
        try:
            path = _download(archive, archive.urls if url is None else (url,), folder)
            _unpack(path, folder, archive.contents)
            if not keep_archive:
                path.unlink()
        except OSError as error:
            what = f"cannot be written ({error.strerror or error})"
            raise UserError(f"{folder}: {what}; choose another folder") from error
        print(f"{target}: fetched")
    print(f"licence: {wanted.licence}")
    if name == "mini_librimix":
        print(arrange_mini_librimix(folder))


def _download(archive: Archive, urls: tuple[str, ...], folder: Path) -> Path:
    """An archive from the first address that has it, with its checksum."""
    import pooch
    import requests

    name = archive.urls[0].rpartition("/")[2]
    kind, _, digest = (archive.checksum or "").partition(":")
    if not digest:
        print(f"{name}: nobody has published a checksum, so it is not checked")
    elif (folder / name).exists() and pooch.file_hash(folder / name, kind) != digest:
        what = "its checksum is not the published one"
        raise UserError(f"{folder / name}: {what}; move it away or finish it (wget -c)")
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        chunk_size=BLOCK,
        timeout=TIMEOUT,
        hooks={"response": _leave_encoded},
    )
    failures = []
    for url in urls:
        print(f"fetching {url}")
        source = pooch.create(
            path=folder,
            base_url="",
            registry={name: archive.checksum},
            urls={name: url},
            retry_if_failed=TRIES - 1,
        )
        try:
            return Path(source.fetch(name, downloader=downloader))
        except (requests.RequestException, ValueError) as error:
            failures.append(f"{url}: {str(error).splitlines()[0]}")
    advice = "An interrupted file begins anew; behind a proxy, set HTTPS_PROXY"
    raise UserError(f"{'; '.join(failures)}. {advice}")


def _leave_encoded(response, **_) -> None:
    # Some servers call a .tar.gz a tar with Content-Encoding gzip.
    response.raw.headers.pop("Content-Encoding", None)


def _unpack(archive: Path, folder: Path, contents: str) -> None:
    """Unpacks beside the place; the data gets its name last, when all of it is there."""
    import pooch

    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as place:
        try:
            if zipfile.is_zipfile(archive):  # zipfile drops what leads out of a folder
                pooch.Unzip(extract_dir=place)(str(archive), "download", None)
            else:
                with tarfile.open(archive) as packed:
                    packed.extractall(place, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            what = f"is damaged or holds what leads out of its folder ({error})"
            raise UserError(f"{archive}: {what}; remove it and fetch it again") from error
        source = Path(place, contents)
        if not source.is_dir():
            raise UserError(f"{archive.name}: holds no {contents}; is it another archive?")
        target = (folder / contents).parent
        target.mkdir(parents=True, exist_ok=True)
        # Beside the data, archives hold a README that may be there from another one.
        for path in sorted(source.parent.iterdir(), key=lambda path: path == source):
            if not (target / path.name).exists():
                os.rename(path, target / path.name)


# ------------------------------------------------------------------ MiniLibriMix


def arrange_mini_librimix(folder: Path) -> str:
    """Makes the folders of Libri2Mix, which recipes take, of MiniLibriMix's.

    MiniLibriMix has no test set: the first half of its validation set, by name, becomes
    dev, the second half test. (They share speakers, so what is measured there compares
    runs with each other, and not with papers.)

    Arguments
    ---------
    folder : Path
        Holds MiniLibriMix/train|val/mix_both|mix_clean|s1|s2|noise/*.wav, and gets links
        to these files: Libri2Mix/wav8k/min/train-100|dev|test/... What exists is left as
        it is.

    Returns
    -------
    str
        How to train on it.

    Raises
    ------
    UserError
        The folders of MiniLibriMix are not there.
    """
    source, target = folder / "MiniLibriMix", folder / "Libri2Mix"
    train, val = (list_audio(source / subset / "mix_both") for subset in ("train", "val"))
    rate = audio.info(source / "train" / "mix_both" / train[0]).sample_rate
    half = len(val) // 2
    if not target.exists():
        with atomic_folder(
            target, {"made_from": "MiniLibriMix"}, "arrangement"
        ) as building:
            place = building / f"wav{rate // 1000}k" / "min"
            _link_tree(source / "train", place / "train-100", train)
            _link_tree(source / "val", place / "dev", val[:half])
            _link_tree(source / "val", place / "test", val[half:])
    return (
        "train on it with: python train.py hparams/libri2mix_noisy_dprnn.yaml "
        f"--data_folder {target} --train_subset train-100 --sample_rate {rate}"
    )


def _link_tree(source: Path, target: Path, names: list[str]) -> None:
    def others(_, found):
        return {name for name in found if name.endswith(".wav")} - set(names)

    shutil.copytree(source, target, ignore=others, copy_function=link_or_copy)


# ------------------------------------------------------------------ the command


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line of ``python -m unified_se_ss.data``.

    Returns
    -------
    int
        0; 1 after a bug; 2 after an error that the user can mend; 130 after Ctrl-C.

    Example
    -------
    >>> main(["fetch", "no_such_set", "-o", "data"])
    2
    """
    options = _options(arguments)
    try:
        fetch(options.name, options.output, options.url, options.keep_archive)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command begins this file anew", file=sys.stderr)
        return 130
    except Exception as error:
        return report_error(error, options.debug)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    top = argparse.ArgumentParser(
        "python -m unified_se_ss.data", description="Fetch public data sets."
    )
    sets = "\n".join(
        f"  {name:<28} {found.size:>5} GB  {found.summary} ({found.licence})"
        for name, found in SETS.items()
    )
    command = top.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "fetch",
        help="fetch a public data set and unpack it",
        description=f"Fetch a public data set and unpack it.\n\n{sets}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("name", metavar="NAME", help="one of those above")
    add("-o", "--output", required=True, metavar="FOLDER", help="where it goes")
    add("--url", help="another address of the same archive, such as a mirror of your own")
    add("--keep_archive", action="store_true", help="leave the archive in FOLDER too")
    add("--debug", action="store_true", help="show the traceback of an error")
    return top.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
