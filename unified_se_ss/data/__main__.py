"""``python -m unified_se_ss.data``: fetch public data sets."""

from __future__ import annotations

import argparse
import sys

from unified_se_ss import crash
from unified_se_ss.data.public_sets import SETS, fetch

EPILOG = """\
A download that broke off is gone on with by the same command; a set that is there is left
as it is. Proxies and certificates come from the environment: HTTPS_PROXY, NO_PROXY,
REQUESTS_CA_BUNDLE. Nothing in an archive is run, and nothing is written outside FOLDER
(docs/security.md).
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Arguments
    ---------
    arguments : list of str, optional
        By default those of the command line.

    Returns
    -------
    int
        0; 1 after a bug; 2 after an error that the user can mend; 130 after Ctrl-C.

    Example
    -------
    >>> main(["fetch", "no_such_set", "-o", "data"])
    2
    """
    options = parser().parse_args(arguments)
    try:
        options.command(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        return crash.tell(error, options.debug)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser("python -m unified_se_ss.data", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "fetch",
        help="fetch a public data set and unpack it",
        description="Fetch a public data set and unpack it.\n\n" + described_sets(),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=fetch_set)
    command.add_argument("name", metavar="NAME", help="one of those above")
    command.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where it goes"
    )
    command.add_argument(
        "--url", help="another address of the same archive, such as a mirror of your own"
    )
    command.add_argument(
        "--keep_archive", action="store_true", help="leave the archive in FOLDER too"
    )
    command.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    return top


def described_sets() -> str:
    """Every set in one line, with the size of what is fetched."""
    lines = []
    for name, found in SETS.items():
        lengths = [archive.length for archive in found.archives]
        size = f"{sum(lengths) / 1e9:.1f} GB" if all(lengths) else "large"
        lines.append(f"  {name:<28} {size:>8}  {found.summary} ({found.licence})")
    return "\n".join(lines)


def fetch_set(options) -> None:
    """Fetch a set."""
    fetch(options.name, options.output, options.url, options.keep_archive)


if __name__ == "__main__":
    sys.exit(main())
