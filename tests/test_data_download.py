"""Public data sets from a server on the loopback address."""

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from unified_se_ss.data import __main__ as download
from unified_se_ss.data import audio
from unified_se_ss.data.__main__ import (
    SETS,
    Archive,
    PublicSet,
    arrange_mini_librimix,
    main,
)
from unified_se_ss.data.corpora.mixtures import prepare_librimix


class Handler(BaseHTTPRequestHandler):
    """Gives the server's files; `cut` of them end too early once each."""

    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Encoding", "gzip")  # as some servers say of a .tar.gz
        self.end_headers()
        if self.path in self.server.cut:
            self.server.cut.remove(self.path)
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def publish(monkeypatch):
    """Makes a set of archives that lie on a server; gives the server."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("time.sleep", lambda _: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut, server.asked = {}, set(), []
    root = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def put(contents=("set",), ending=".tar.gz", checksum=True, **packed):
        archives = []
        for (name, body), folder in zip(packed.items(), contents):
            server.files[f"/{name}{ending}"] = body
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}" if checksum else None
            urls = (f"{root}/gone/{name}{ending}", f"{root}/{name}{ending}")
            archives.append(Archive(urls, folder, digest))
        found = PublicSet("Small", 0.1, "CC0", tuple(archives))
        monkeypatch.setitem(SETS, "small", found)
        return server

    yield put
    server.shutdown()
    server.server_close()


def tar_of(*members):
    """A member's content is bytes, or where a link leads to."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname, content = tarfile.SYMTYPE, content, b""
            packed.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zip_of(*members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in members:
            packed.writestr(name, content)
    return file.getvalue()


def everything(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fetch(folder, *more):
    return main(["fetch", "small", "-o", str(folder), *more])


def test_a_set_is_fetched_checked_unpacked_and_there_the_second_time(
    publish, tmp_path, capsys
):
    """From the second address, and after a connection that broke off."""
    parts = {
        name: tar_of(("Set/README", b"read"), (f"Set/{name}/a", name.encode()))
        for name in ("one", "two")
    }
    server = publish(("Set/one", "Set/two"), **parts)
    server.cut.add("/one.tar.gz")
    (tmp_path / "Set").mkdir()
    (tmp_path / "Set" / "README").write_bytes(b"a user's own")
    assert fetch(tmp_path) == 0
    assert everything(tmp_path) == {
        "Set/README": b"a user's own",
        "Set/one/a": b"one",
        "Set/two/a": b"two",
    }
    assert server.asked.count("/one.tar.gz") == 2
    capsys.readouterr()
    server.asked.clear()
    assert fetch(tmp_path) == 0 and not server.asked
    assert capsys.readouterr().out.count("there already") == 2
    assert fetch(tmp_path, "--url", "http://a/b") == 2
    assert "consists of several archives" in capsys.readouterr().err


def test_an_archive_of_the_users_own_is_not_overwritten(publish, tmp_path, capsys):
    server = publish(one=tar_of(("set/a", b"a")))
    (tmp_path / "one.tar.gz").write_bytes(b"half of it")
    assert fetch(tmp_path) == 2 and not server.asked
    assert "its checksum is not the published one" in capsys.readouterr().err
    assert everything(tmp_path) == {"one.tar.gz": b"half of it"}


def test_another_address_and_the_archive_kept(publish, tmp_path, capsys):
    server = publish(ending=".zip", checksum=False, one=zip_of(("set/a", b"a")))
    server.files["/mirror"] = server.files.pop("/one.zip")
    url = f"http://127.0.0.1:{server.server_port}/mirror"
    assert fetch(tmp_path, "--keep_archive", "--url", url) == 0
    assert everything(tmp_path).keys() == {"one.zip", "set/a"}
    assert "nobody has published a checksum" in capsys.readouterr().out


def test_what_cannot_be_had_or_is_another_file_is_said(publish, tmp_path, capsys):
    server = publish(one=tar_of(("set/a", b"a")))
    page = b"<!DOCTYPE html>Log in to the hotel's network"
    for body, said in ((page, "does not match the known hash"), (None, "404")):
        server.files["/one.tar.gz"] = body
        assert fetch(tmp_path) == 2
        message = capsys.readouterr().err
        assert said in message and "/one.tar.gz: " in message and "begins anew" in message
        assert everything(tmp_path) == {}


@pytest.mark.parametrize(
    ("ending", "body", "said"),
    [
        (".tar.gz", tar_of(("set/a", b"a"), ("../../evil", b"evil")), "leads out"),
        (".tar.gz", tar_of(("/tmp/evil/evil", b"evil")), "holds no set"),
        (".tar.gz", tar_of(("set", "/etc")), "leads out"),
        (".tar.gz", tar_of(("set/a", bytes(9999)))[:-20], "is damaged"),
        (".zip", zip_of(("../../evil", b"evil")), "holds no set"),
        (".zip", b"PK no archive", "is damaged"),
    ],
    ids=["tar up", "tar absolute", "tar link", "tar cut", "zip up", "no zip"],
)
def test_an_archive_of_harm_leaves_nothing(publish, tmp_path, capsys, ending, body, said):
    publish(ending=ending, checksum=False, one=body)
    assert fetch(tmp_path / "deep" / "data") == 2
    assert said in capsys.readouterr().err
    assert everything(tmp_path).keys() == {f"deep/data/one{ending}"}


def test_a_disk_that_refuses_and_an_interruption_are_said(
    publish, tmp_path, capsys, monkeypatch
):
    publish(one=tar_of(("set/a", b"a")))
    (tmp_path / "file").write_bytes(b"")
    assert fetch(tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_unpack", interrupt)
    assert fetch(tmp_path / "data") == 130
    assert "begins this file anew" in capsys.readouterr().err
    monkeypatch.undo()


def test_the_table_is_well_formed():
    """Checksums are of their kind's length, addresses are https."""
    archives = [archive for found in SETS.values() for archive in found.archives]
    assert len({archive.contents for archive in archives}) == len(archives)
    for archive in archives:
        assert all(url.startswith("https://") for url in archive.urls)
        assert archive.urls[0].endswith((".zip", ".tar.gz"))
        if archive.checksum is None:
            assert archive.contents == "wham_noise"
            continue
        kind, digest = archive.checksum.split(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size


@pytest.mark.parametrize("rate", [8000, 16000])
def test_mini_librimix_becomes_what_a_recipe_takes(tmp_path, rate):
    rng = np.random.default_rng(0)
    for subset, count in (("train", 4), ("val", 5)):
        for stem in ("mix_both", "mix_clean", "s1", "s2", "noise"):
            for number in range(count):
                path = tmp_path / "MiniLibriMix" / subset / stem / f"{subset}{number}.wav"
                audio.write(path, 0.1 * rng.uniform(-1, 1, 1000), rate)
    for _ in range(2):
        said = arrange_mini_librimix(tmp_path)
    assert f"--data_folder {tmp_path / 'Libri2Mix'}" in said and str(rate) in said
    choices = {"sample_rate": rate, "train_subset": "train-100"}
    paths = prepare_librimix(tmp_path / "Libri2Mix", tmp_path / "manifests", **choices)
    counts = {k: len(v.read_text().splitlines()) - 1 for k, v in paths.items()}
    assert counts == {"train": 4, "dev": 2, "test": 3}
    (tmp_path / "MiniLibriMix").rename(tmp_path / "elsewhere")
    (tmp_path / "MiniLibriMix").mkdir()
    assert main(["fetch", "mini_librimix", "-o", str(tmp_path)]) == 2
