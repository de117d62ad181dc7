"""A run's best checkpoint and results copied elsewhere, such as to a cloud bucket.

Any destination that fsspec knows will do: ``s3://bucket/name``, ``gs://bucket/name``,
``memory://name``, or a folder. What goes wrong on the way is said, and hurts no run.
"""

from __future__ import annotations

import logging
from pathlib import Path

from unified_se_ss.errors import UserError

logger = logging.getLogger(__name__)

# What is left at home: other checkpoints, and what only this run needs.
LEFT_OUT = {"save", "tensorboard", "manifests"}


def check_upload(uri: str | None) -> None:
    """Stop at a destination that can never be reached, before hours have gone by.

    Arguments
    ---------
    uri : str or None
        As for :func:`upload`; None is none.

    Raises
    ------
    UserError
        A package is missing, or there is no such kind of destination.

    Example
    -------
    >>> check_upload(None)
    """
    if uri is None:
        return
    try:
        import fsspec
    except ImportError as error:
        raise UserError(
            "upload_uri: needs the package fsspec; pip install 'unified_se_ss[upload]', "
            "or leave upload_uri null"
        ) from error
    protocol = fsspec.utils.get_protocol(str(uri))
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:  # such as s3fs; it says which
        raise UserError(f"upload_uri: {uri}: {error}") from error
    except ValueError as error:
        raise UserError(
            f"upload_uri: {uri}: there is no protocol '{protocol}'; expected such as "
            "s3://bucket/name, gs://bucket/name, or a folder"
        ) from error


def upload(folder, checkpoint, uri: str | None) -> str | None:
    """Copy a run's files and one checkpoint; failures are logged, and nothing more.

    Arguments
    ---------
    folder : str or Path
        The run's folder: all files in it go along, and the folders ``wavs`` and so on,
        but no other checkpoints.
    checkpoint : str or Path or None
        Folder of the checkpoint; it goes to ``save/`` under its own name, so that the
        destination, fetched again, is a run's folder.
    uri : str or None
        The destination; a folder there of the run's files. None: nothing is done.

    Returns
    -------
    str or None
        The destination if everything got there.

    Example
    -------
    >>> import fsspec, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "results.csv").write_text("ID,si_snr")
    >>> upload(folder, None, "memory://demo/run")
    'memory://demo/run'
    >>> fsspec.filesystem("memory").cat("/demo/run/results.csv")
    b'ID,si_snr'
    """
    if uri is None:
        return None
    try:
        _copy(Path(folder), None if checkpoint is None else Path(checkpoint), str(uri))
    except Exception as error:  # whatever a cloud's package raises: the run is done
        logger.warning(
            "upload_uri: could not copy everything to %s (%s: %s); all of it is in %s",
            uri,
            type(error).__name__,
            error,
            folder,
        )
        return None
    return str(uri)


def _copy(folder: Path, checkpoint: Path | None, uri: str) -> None:
    """Copy the files, in order of their names."""
    from fsspec.core import url_to_fs

    system, root = url_to_fs(uri)
    files = {
        path.relative_to(folder): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] not in LEFT_OUT
    }
    if checkpoint is not None:
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file():
                files[Path("save", checkpoint.name, path.relative_to(checkpoint))] = path
    for name, path in files.items():
        to = "/".join([root.rstrip("/"), *name.parts])
        system.makedirs(to.rpartition("/")[0], exist_ok=True)
        system.put_file(str(path), to)
