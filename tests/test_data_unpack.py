"""Archives that were made to do harm, and what is fetched by name."""

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unified_se_ss.data import public_sets
from unified_se_ss.data.__main__ import main
from unified_se_ss.data.corpora.librimix import prepare_librimix
from unified_se_ss.data.corpora.mini_librimix import arrange_mini_librimix
from unified_se_ss.data.download import Patience
from unified_se_ss.data.public_sets import SETS, Archive, PublicSet, fetch
from unified_se_ss.data.unpack import unpack
from unified_se_ss.errors import UserError

QUICK = Patience(attempts=2, pause=0.001, timeout=1)
MOST = 1_000_000


def tar_of(members, mode="w:gz"):
    """A tar archive of (name or TarInfo, content) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for member, content in members:
            info = (
                member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            )
            if content is not None:
                info.size = len(content)
            tar.addfile(info, None if content is None else io.BytesIO(content))
    return file.getvalue()


def zip_of(members):
    """A zip archive of (name or ZipInfo, content) pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for member, content in members:
            packed.writestr(member, content)
    return file.getvalue()


def special(name, kind, target=""):
    """A link or device in a tar archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, None


def zip_link(name, target):
    """A symbolic link in a zip archive."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


def write(tmp_path, content, name="archive"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def everything(folder):
    """Every file under a folder, with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


GOOD = [("set/a.txt", b"a"), ("set/b/c.bin", bytes(5000)), ("README", b"read me")]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_what_was_packed_comes_out(tmp_path, mode):
    content = zip_of(GOOD) if mode == "zip" else tar_of(GOOD, mode)
    found = unpack(write(tmp_path, content), tmp_path / "out", MOST, show=False)
    assert everything(tmp_path / "out") == dict(GOOD)
    assert found == (3, 5008)


LEADING_OUT = [
    "../evil",
    "set/../../evil",
    "/evil",
    "//evil",
    "set/../set/../../evil",
    "..",
    "C:/evil",
    "set\\..\\..\\evil",
    "a" * 1001,
]


@pytest.mark.parametrize("name", LEADING_OUT)
@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_name_that_leads_out_is_refused(tmp_path, pack, name):
    """Also where the other files are good: nothing of such an archive is to be trusted."""
    inside = tmp_path / "deep" / "inside"
    archive = write(tmp_path, pack([*GOOD, (name, b"evil")]))
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(archive, inside / "out", MOST, show=False)
    assert not [p for p in tmp_path.rglob("*") if p.name == "evil"]


KINDS = {
    "symlink": special("set/link", tarfile.SYMTYPE, "/etc/passwd"),
    "relative symlink": special("set/link", tarfile.SYMTYPE, "a.txt"),
    "hard link": special("set/link", tarfile.LNKTYPE, "/etc/passwd"),
    "fifo": special("set/fifo", tarfile.FIFOTYPE),
    "character device": special("set/zero", tarfile.CHRTYPE),
    "block device": special("set/disk", tarfile.BLKTYPE),
    "unknown": special("set/what", b"Q"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(tmp_path, kind):
    archive = write(tmp_path, tar_of([KINDS[kind], ("set/link/evil", b"evil")]))
    if (
        kind == "unknown"
    ):  # tarfile takes these for plain files, and so they come out as such
        return
    with pytest.raises(UserError, match="is a link, a device or encrypted"):
        unpack(archive, tmp_path / "out", MOST, show=False)
    assert everything(tmp_path / "out") == {}


def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = write(tmp_path, zip_of([zip_link("set", "/tmp"), ("set/evil", b"evil")]))
    with pytest.raises(UserError, match="'set' is a link"):
        unpack(archive, tmp_path / "out", MOST, show=False)


def test_an_encrypted_zip_is_refused(tmp_path):
    content = bytearray(zip_of([("set/a", b"a")]))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UserError, match="encrypted"):
        unpack(write(tmp_path, bytes(content)), tmp_path / "out", MOST, show=False)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path, pack):
    archive = write(tmp_path, pack([("set/a", b"1"), ("set/a", b"2")]))
    with pytest.raises(UserError, match="holds the name 'set/a' twice"):
        unpack(archive, tmp_path / "out", MOST, show=False)
    archive = write(tmp_path, pack([("set", b"1"), ("set/a", b"2")]), "other")
    with pytest.raises(UserError, match="holds a file where a folder is to be"):
        unpack(archive, tmp_path / "other-out", MOST, show=False)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_bomb_is_stopped(tmp_path, pack):
    """30 MB of zeros in a few dozen KB."""
    archive = write(tmp_path, pack([("set/a", b"a"), ("set/zeros", bytes(30_000_000))]))
    assert archive.stat().st_size < 100_000
    with pytest.raises(UserError, match="unpacks to more than the 1,000,000 bytes"):
        unpack(archive, tmp_path / "out", MOST, show=False)
    assert sum(map(len, everything(tmp_path / "out").values())) <= MOST


def test_a_bomb_of_many_files_or_of_headers_is_stopped(tmp_path):
    many = write(tmp_path, tar_of([(f"set/{n}", bytes(1000)) for n in range(1100)]))
    with pytest.raises(UserError, match="unpacks to more"):
        unpack(many, tmp_path / "out", MOST, show=False)
    info = tarfile.TarInfo("set/a")
    info.pax_headers = {"comment": "x" * 15_000_000}
    with pytest.raises(UserError, match="unpacks to more"):
        unpack(
            write(tmp_path, tar_of([(info, b"a")]), "h"), tmp_path / "h-out", MOST, False
        )


def test_a_zip_that_lies_about_its_sizes_is_stopped(tmp_path):
    """The directory says 10 bytes, the file is 30 MB."""
    content = bytearray(zip_of([("set/zeros", bytes(30_000_000))]))
    for signature, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.index(signature) + place
        content[start : start + 4] = (10).to_bytes(4, "little")
    with pytest.raises(UserError, match="is damaged"):
        unpack(write(tmp_path, bytes(content)), tmp_path / "out", MOST, show=False)
    assert sum(map(len, everything(tmp_path / "out").values())) <= MOST


@pytest.mark.parametrize("pack", [tar_of, zip_of])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_damaged_archive_is_named(tmp_path, pack, data):
    """Cut off anywhere, or a byte changed anywhere: refused, or the content is right."""
    content = pack(GOOD)
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        broken = content[:place]
    else:
        value = content[place] ^ data.draw(st.integers(1, 255))
        broken = content[:place] + bytes([value]) + content[place + 1 :]
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        unpack(write(tmp_path, broken), out, MOST, show=False)
    except UserError:
        return
    if pack is tar_of:  # gzip holds a checksum of all; zip holds none of its names
        assert everything(out) == dict(GOOD)
    else:
        assert set(everything(out).values()) <= set(dict(GOOD).values())


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=2000))
def test_anything_else_is_named(content):
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"unpack-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        with pytest.raises(UserError):
            unpack(write(folder, content), folder / "out", MOST, show=False)
            assert not everything(folder / "out")  # an empty tar is an archive too
            raise UserError("nothing in it")
    finally:
        shutil.rmtree(folder)


# ------------------------------------------------------------------ sets


@pytest.fixture
def small_set(server, monkeypatch):
    """A set of two archives that share a README."""
    archives = []
    for name in ("one", "two"):
        content = tar_of([("Set/README", b"read"), (f"Set/{name}/a", name.encode())])
        server.add(f"/{name}.tar.gz", content, drop_after=len(content) // 2, drops=1)
        digest = hashlib.sha256(content).hexdigest()
        url = server.url(f"/{name}.tar.gz")
        archives.append(
            Archive((url,), f"Set/{name}", MOST, len(content), f"sha256:{digest}")
        )
    monkeypatch.setitem(SETS, "small", PublicSet("Small", "CC0", tuple(archives)))
    return server


def requests(server):
    return sum(len(file.seen) for file in server.files.values())


def test_a_set_is_fetched_unpacked_and_there_the_second_time(small_set, tmp_path, capsys):
    folder = tmp_path / "data"
    (folder / "Set").mkdir(parents=True)
    (folder / "Set" / "README").write_bytes(b"a user's own")
    assert main(["fetch", "small", "-o", str(folder)]) == 0
    found = {k: v for k, v in everything(folder).items() if not k.startswith(".fetched")}
    assert found == {
        "Set/README": b"a user's own",
        "Set/one/a": b"one",
        "Set/two/a": b"two",
    }
    assert sorted(p.name for p in folder.iterdir()) == [".fetched", "Set"]
    asked = requests(small_set)
    capsys.readouterr()
    assert main(["fetch", "small", "-o", str(folder)]) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert requests(small_set) == asked


def test_a_set_that_lacks_files_is_not_taken_for_whole(small_set, tmp_path):
    fetch("small", tmp_path, patience=QUICK, show=False)
    (tmp_path / "Set/two/a").unlink()
    with pytest.raises(
        UserError, match="Set/two: exists, but was not put there by this comm"
    ):
        fetch("small", tmp_path, patience=QUICK, show=False)
    shutil.rmtree(tmp_path / "Set/two")
    fetch("small", tmp_path, patience=QUICK, show=False)
    assert (tmp_path / "Set/two/a").read_bytes() == b"two"


def test_what_a_user_has_is_not_touched(small_set, tmp_path):
    (tmp_path / "Set/one").mkdir(parents=True)
    with pytest.raises(UserError, match="Set/one: exists, but was not put there"):
        fetch("small", tmp_path, patience=QUICK, show=False)
    assert requests(small_set) == 0
    (tmp_path / "file").write_bytes(b"")
    assert main(["fetch", "small", "-o", str(tmp_path / "file")]) == 2


def test_an_archive_of_harm_leaves_nothing(server, monkeypatch, tmp_path):
    content = tar_of([("set/a", b"a"), ("../evil", b"evil")])
    server.add("/a.tar.gz", content)
    archive = Archive((server.url("/a.tar.gz"),), "set", MOST, len(content))
    monkeypatch.setitem(SETS, "bad", PublicSet("Bad", "none", (archive,)))
    with pytest.raises(UserError, match="leads out of the folder"):
        fetch("bad", tmp_path / "data", patience=QUICK, show=False)
    assert everything(tmp_path / "data").keys() == {"a.tar.gz", ".fetched/README", LOCK}
    assert not (tmp_path / "evil").exists()


LOCK = ".fetched/a.tar.gz.lock"


def test_an_archive_of_something_else(server, monkeypatch, tmp_path):
    server.add("/a.zip", zip_of([("other/a", b"a")]))
    archive = Archive((server.url("/a.zip"),), "set", MOST)
    monkeypatch.setitem(SETS, "other", PublicSet("Other", "none", (archive,)))
    said = []
    with pytest.raises(UserError, match="a.zip: holds no set, but other"):
        fetch("other", tmp_path, patience=QUICK, show=False, say=said.append)
    assert "nobody has published a checksum; its length alone is checked" in said[0]


def test_a_kill_between_the_steps_is_made_good(small_set, tmp_path, monkeypatch):
    """After the record and before the folder has its name, and in the midst of unpacking."""
    rename = os.rename

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(public_sets.os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch("small", tmp_path, patience=QUICK, show=False)
    assert not (tmp_path / "Set/one").exists()
    (tmp_path / ".unpacking-one.tar.gz-killed/Set").mkdir(parents=True)
    monkeypatch.setattr(public_sets.os, "rename", rename)
    fetch("small", tmp_path, patience=QUICK, show=False)
    assert (tmp_path / "Set/one/a").read_bytes() == b"one"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".fetched", "Set"]


def test_another_address_and_the_archive_kept(small_set, tmp_path, capsys, monkeypatch):
    archive = SETS["small"].archives[0]
    monkeypatch.setitem(SETS, "single", PublicSet("Single", "CC0", (archive,)))
    small_set.files["/mirror/x"] = small_set.files.pop("/one.tar.gz")
    arguments = ["fetch", "single", "-o", str(tmp_path), "--keep_archive"]
    assert main([*arguments, "--url", small_set.url("/mirror/x")]) == 0
    assert (tmp_path / "one.tar.gz").stat().st_size == archive.length
    assert main(["fetch", "small", "-o", str(tmp_path), "--url", "http://a/b"]) == 2
    assert "consists of several archives" in capsys.readouterr().err


def test_the_table_is_well_formed():
    """Names of files differ, checksums are of their kind's length, addresses are https."""
    archives = [archive for found in SETS.values() for archive in found.archives]
    assert len({archive.name for archive in archives}) == len(archives)
    for archive in archives:
        assert all(url.startswith("https://") for url in archive.urls)
        assert archive.name.endswith((".zip", ".tar.gz"))
        if archive.checksum is None:
            assert archive.name == "wham_noise.zip"  # the one that nobody vouches for
            continue
        kind, digest = archive.checksum.split(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size
        assert archive.length < archive.unpacked


def make_mini(folder, rate=8000):
    rng = np.random.default_rng(0)
    for subset, count in (("train", 4), ("val", 5)):
        for stem in ("mix_both", "mix_clean", "s1", "s2", "noise"):
            place = folder / "MiniLibriMix" / subset / stem
            place.mkdir(parents=True)
            for number in range(count):
                signal = 0.1 * rng.standard_normal(1000)
                soundfile.write(place / f"{subset}{number}.wav", signal, rate)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_mini_librimix_becomes_what_a_recipe_takes(tmp_path, rate):
    make_mini(tmp_path, rate)
    for _ in range(2):
        said = arrange_mini_librimix(tmp_path)
    assert f"--data_folder {tmp_path / 'Libri2Mix'}" in said and str(rate) in said
    paths = prepare_librimix(
        tmp_path / "Libri2Mix",
        tmp_path / "manifests",
        sample_rate=rate,
        train_subset="train-100",
    )
    counts = {k: len(v.read_text().splitlines()) - 1 for k, v in paths.items()}
    assert counts == {"train": 4, "dev": 2, "test": 3}
    shutil.rmtree(tmp_path / "Libri2Mix")
    (tmp_path / "MiniLibriMix/val/s1/val0.wav").unlink()
    with pytest.raises(UserError, match="val: expected the same wav files"):
        arrange_mini_librimix(tmp_path)


def test_help_names_every_set(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in SETS)


def test_gzip_of_a_stream_that_never_ends(tmp_path):
    """A tar that is good, followed by zeros that nobody asked for."""
    content = gzip.decompress(tar_of([("set/a", b"a")])) + bytes(15_000_000)
    with pytest.raises(UserError, match="unpacks to more"):
        unpack(write(tmp_path, gzip.compress(content, 1)), tmp_path / "out", MOST, False)
