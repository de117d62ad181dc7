"""Downloads from a server on the loopback address that has every fault there is."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from unified_se_ss.data import download as module
from unified_se_ss.data.download import Patience, Wanted, alone, download
from unified_se_ss.errors import UserError

BODY = np.random.default_rng(0).bytes(300_000)
QUICK = Patience(attempts=3, pause=0.001, timeout=0.5)
PAGE = b"<!DOCTYPE html><html>Log in to the hotel's network</html>"


def checksum(body, kind="sha256"):
    return f"{kind}:{hashlib.new(kind, body).hexdigest()}"


@pytest.fixture
def get(server, tmp_path):
    """Fetches a file that was put on the server."""

    def fetch(*paths, body=BODY, length=True, summed=True, patience=QUICK):
        wanted = Wanted(
            tuple(server.url(path) for path in paths or ("/file",)),
            tmp_path / "file",
            len(body) if length else None,
            checksum(body) if summed else None,
        )
        return download(wanted, patience, show=False).read_bytes()

    return fetch


# The module without its package, whose import takes seconds.
LIGHT = f"""
import sys, types
from pathlib import Path
data = types.ModuleType("unified_se_ss.data")
data.__path__ = [{str(Path(module.__file__).parent)!r}]
sys.modules["unified_se_ss.data"] = data
from unified_se_ss.data.download import Wanted, alone, download
"""


def start(code, *arguments, **pipes):
    """Run code in another process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", LIGHT + code, *arguments]
    return subprocess.Popen(command, env=environment, **pipes)


def there(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


# What the server does wrong, and the number of requests that it takes.
MENDED = {
    "nothing": ({}, 1),
    "drops every 50 kB": ({"drop_after": 50_000}, 6),
    "resets every 70 kB": ({"drop_after": 70_000, "reset": True}, None),
    "drops before any answer": ({"answers": ["drop", "drop"]}, 3),
    "503, then well": ({"answers": [503, 503]}, 3),
    "500, 502, then well": ({"answers": [500, 502]}, 3),
    "429 with Retry-After": ({"answers": [429], "retry_after": "0"}, 2),
    "ignores Range": ({"ranges": False, "drop_after": 200_000, "drops": 2}, 3),
    "sends another part than asked for": (
        {"wrong_range": True, "drop_after": 200_000, "drops": 1},
        3,
    ),
    "no ETag": ({"etag": None, "drop_after": 100_000}, 3),
    "a weak ETag": ({"etag": 'W/"x"', "drop_after": 100_000}, 3),
    "no length": ({"chunked": True}, 1),
    "no length, drops": ({"chunked": True, "drop_after": 100_000}, 3),
    "claims gzip": ({"encoding": "gzip"}, 1),
    "slow": ({"pause": 0.0005}, 1),
}


@pytest.mark.parametrize("fault", MENDED)
def test_a_download_ends_well_whatever_passes(server, get, tmp_path, fault):
    faults, requests = MENDED[fault]
    file = server.add("/file", BODY, **faults)
    assert get() == BODY
    assert there(tmp_path) == ["file"]
    assert requests is None or len(file.seen) == requests


def test_the_rest_is_asked_for_of_the_same_version(server, get):
    file = server.add("/file", BODY, drop_after=200_000, drops=1)
    assert get() == BODY
    assert file.seen[0] == (None, None)
    start = int(file.seen[1][0].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 200_000 and file.seen[1][1] == '"one"'


@pytest.mark.parametrize("versions", [{"etag": '"one"'}, {"etag": None}])
def test_a_file_that_changes_in_between_is_not_patched_together(server, get, versions):
    """The ETag tells; where there is none, the checksum does."""
    old = bytes(len(BODY))
    server.add("/file", old, drop_after=100_000, drops=1, **versions).new_version = (
        '"two"' if versions["etag"] else None,
        BODY,
    )
    assert get() == BODY


def test_without_a_checksum_only_a_known_version_is_gone_on_with(server, get, tmp_path):
    file = server.add("/file", BODY, drop_after=200_000, drops=1)
    assert get(summed=False, length=False) == BODY
    assert file.seen[1][0] is not None
    (tmp_path / "file").unlink()
    file = server.add("/file", BODY, etag=None, drop_after=200_000, drops=1)
    assert get(summed=False, length=False) == BODY
    assert file.seen[1][0] is None


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_not_there_is_said_at_once(server, get, tmp_path, status):
    file = server.add("/file", BODY, answers=[status])
    with pytest.raises(UserError, match=f"/file: the server answers {status}"):
        get()
    assert len(file.seen) == 1 and there(tmp_path) == []


@pytest.mark.parametrize("answers", [[500] * 9, ["drop"] * 9])
def test_it_gives_up_after_a_stated_number_of_attempts(server, get, tmp_path, answers):
    file = server.add("/file", BODY, answers=answers)
    with pytest.raises(UserError, match="gave up after 3 attempts that brought nothing"):
        get()
    assert len(file.seen) == 3 and there(tmp_path) == []


def test_an_address_without_a_server(get, tmp_path, server):
    port = server.server_port
    server.server_close()
    server.shutdown()
    with pytest.raises(
        UserError, match=f":{port}/file: the connection failed.*HTTPS_PROXY"
    ):
        get()
    assert there(tmp_path) == []


def test_a_server_that_falls_silent(server, get, tmp_path):
    """What has arrived is kept, and the next command goes on from there."""
    file = server.add("/file", BODY, drop_after=100_000, drops=1)
    file.answers = []
    silent = server.add("/silent", BODY, pause=5.0)
    with pytest.raises(UserError, match="/silent: .*gave up after 3 attempts"):
        get("/silent")
    assert len(silent.seen) == 3
    assert get() == BODY


def test_what_has_arrived_is_kept_for_the_next_command(server, get, tmp_path):
    file = server.add("/file", BODY, drop_after=200_000, drops=1)
    file.new_version = ('"one"', BODY)
    server.files["/file"].answers = []
    with pytest.raises(UserError, match="at [0-9,]+ bytes. They are kept"):
        file.drops = 1
        stop = threading.Thread(target=_fail_from_now, args=(file,))
        stop.start()
        get()
    stop.join()
    kept = (tmp_path / "file.part").stat().st_size
    assert 0 < kept < len(BODY)
    file.answers, file.drop_after = [], None
    assert get() == BODY
    assert file.seen[-1] == (f"bytes={kept}-", '"one"')
    assert there(tmp_path) == ["file"]


def _fail_from_now(file):
    """Answer 500 to all that follows the first request."""
    while not file.seen:
        time.sleep(0.0005)
    file.answers = [500] * 9


@pytest.mark.parametrize("announced", [len(BODY) - 1000, len(BODY) + 1000])
def test_a_length_that_is_not_the_published_one_is_refused(
    server, get, tmp_path, announced
):
    file = server.add("/file", BODY, announced=announced)
    with pytest.raises(UserError, match=f"offers {announced:,} bytes.*expected 300,000"):
        get()
    assert len(file.seen) == 1 and there(tmp_path) == []


def test_a_lie_about_an_unpublished_length(server, get, tmp_path):
    """Too long: a connection that ends early, until the server says what there is."""
    file = server.add("/file", BODY, announced=len(BODY) + 1000)
    assert get(length=False) == BODY
    assert file.seen[1][0] == f"bytes={len(BODY)}-"  # answered by 416
    (tmp_path / "file").unlink()
    server.add("/file", BODY, announced=len(BODY) + 1000, ranges=False)
    with pytest.raises(UserError, match="gave up after 3 attempts"):
        get(length=False)
    (tmp_path / "file.part").unlink()
    server.add("/file", BODY, announced=len(BODY) - 1000)
    with pytest.raises(UserError, match="its sha256 is [0-9a-f]{64}, expected"):
        get(length=False)
    assert not (tmp_path / "file").exists()


def test_a_longer_body_than_published_is_cut_off(server, get, tmp_path):
    server.add("/file", BODY + b"more", chunked=True)
    with pytest.raises(UserError, match="sends more than 300,000 B"):
        get()
    assert (tmp_path / "file.part").stat().st_size <= len(BODY)


def test_another_file_of_the_same_length(server, get, tmp_path):
    file = server.add("/file", bytes(len(BODY)))
    with pytest.raises(UserError, match="its sha256 is .* expected .* is removed"):
        get()
    assert len(file.seen) == 1 and there(tmp_path) == []


@pytest.mark.parametrize("length", [True, False])
def test_a_page_in_place_of_the_file(server, get, tmp_path, length):
    server.add("/file", PAGE, content_type="text/html")
    said = "57 bytes of text/html; expected 300,000" if length else "it is a web page"
    with pytest.raises(UserError, match=said):
        get(length=length)
    assert there(tmp_path) == []


def test_a_page_does_not_destroy_what_has_arrived(server, get, tmp_path):
    """A hotel's login page in the midst of a download of hours."""
    (tmp_path / "file.part").write_bytes(BODY[:250_000])
    server.add("/file", PAGE, ranges=False)
    with pytest.raises(UserError, match="57 bytes"):
        get()
    assert (tmp_path / "file.part").read_bytes() == BODY[:250_000]
    file = server.add("/file", BODY)
    assert get() == BODY
    assert file.seen == [("bytes=250000-", None)]


def test_a_part_that_is_wrong_is_fetched_once_more(server, get, tmp_path):
    (tmp_path / "file.part").write_bytes(bytes(100_000))
    file = server.add("/file", BODY)
    assert get() == BODY
    assert [asked for asked, _ in file.seen] == ["bytes=100000-", None]


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 5])
def test_a_part_that_is_whole_or_too_long(server, get, tmp_path, size):
    (tmp_path / "file.part").write_bytes((BODY + bytes(5))[:size])
    file = server.add("/file", BODY)
    assert get() == BODY
    assert len(file.seen) == (0 if size == len(BODY) else 1)


def test_nothing_is_left_to_fetch_says_the_server(server, get, tmp_path):
    """416: all of it, or a part that is longer than the file is now."""
    (tmp_path / "file.part").write_bytes(BODY)
    file = server.add("/file", BODY)
    assert get(length=False) == BODY
    assert len(file.seen) == 1
    (tmp_path / "file").unlink()
    (tmp_path / "file.part").write_bytes(BODY + bytes(9))
    assert get(length=False) == BODY


def test_redirections(server, get, tmp_path):
    server.add("/file", b"", location="/further")
    server.add("/further", b"", location=server.url("/there"))
    server.add("/there", BODY, drop_after=200_000, drops=1)
    assert get() == BODY
    server.add("/circle", b"", location="/circle")
    (tmp_path / "file").unlink()
    with pytest.raises(UserError, match="/circle: Exceeded 10 redirects"):
        get("/circle")
    server.add("/out", b"", location="file:///etc/passwd")
    with pytest.raises(UserError, match="/out: "):
        get("/out")
    assert there(tmp_path) == []


def test_from_encryption_to_none_is_refused():
    with pytest.raises(
        UserError, match="https://a/f: leads to http://b/f, which is not enc"
    ):
        module._check_scheme("https://a/f", "http://b/f")


def test_the_second_address_is_tried_where_the_first_fails(server, get, caplog):
    server.add("/mirror", BODY)
    assert get("/gone", "/mirror") == BODY
    assert "/gone: the server answers 404" in caplog.text


def test_a_proxy_of_the_environment_is_asked(server, tmp_path, monkeypatch):
    """The server stands in for the proxy: it is asked for the whole address."""
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    monkeypatch.setenv("http_proxy", server.url(""))
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    server.add("http://data.invalid/file", BODY)
    wanted = Wanted(("http://data.invalid/file",), tmp_path / "file", len(BODY))
    assert download(wanted, QUICK, show=False).read_bytes() == BODY


def test_a_file_that_is_there_is_not_fetched(server, get, tmp_path):
    file = server.add("/file", BODY)
    get()
    assert get() == BODY and len(file.seen) == 1
    (tmp_path / "file").write_bytes(b"a user's own")
    with pytest.raises(
        UserError, match="file: has 12 bytes, expected 300,000; move it away"
    ):
        get()
    assert (tmp_path / "file").read_bytes() == b"a user's own"


def test_no_room_is_said_before_anything_is_fetched(server, get, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=module.SPARE + len(BODY) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    server.add("/file", BODY)
    with pytest.raises(UserError, match="0.00 GB are needed and 0.05 GB are free"):
        get()
    assert there(tmp_path) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=free.free + 1))
    assert get() == BODY


def test_a_disk_that_fills_up_keeps_what_has_arrived(server, get, tmp_path, monkeypatch):
    """A limit on the size of a file stands in for the disk."""
    import resource

    server.add("/file", BODY)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (130_000, limits[1]))
        with pytest.raises(UserError, match="cannot be written .*kept in the .part file"):
            get()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    kept = (tmp_path / "file.part").read_bytes()
    assert 0 < len(kept) <= 130_000 and kept == BODY[: len(kept)]
    assert get() == BODY


def test_killed_in_the_midst_it_goes_on(server, tmp_path):
    file = server.add("/file", BODY, pause=0.002)
    running = start(
        "download(Wanted((sys.argv[1],), Path(sys.argv[2]), None, sys.argv[3]), show=False)",
        server.url("/file"),
        str(tmp_path / "file"),
        checksum(BODY),
    )
    part, until = tmp_path / "file.part", time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < until:
        time.sleep(0.005)
    running.kill()
    running.wait()
    kept = part.read_bytes()
    assert 0 < len(kept) < len(BODY) and kept == BODY[: len(kept)]
    file.pause, file.seen[:] = 0.0, []
    wanted = Wanted((server.url("/file"),), tmp_path / "file", None, checksum(BODY))
    assert download(wanted, QUICK, show=False).read_bytes() == BODY
    assert file.seen == [(f"bytes={len(kept)}-", '"one"')]


def test_two_processes_do_not_fetch_the_same(tmp_path):
    holder = start(
        "with alone(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
        str(tmp_path / "lock"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    with (
        pytest.raises(UserError, match="another process is fetching this"),
        alone(tmp_path / "lock"),
    ):
        pass
    holder.kill()
    holder.wait()
    with alone(tmp_path / "lock"):
        pass
