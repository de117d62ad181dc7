"""A run's files copied elsewhere; what goes wrong on the way hurts no run."""

import fsspec
import pytest

from unified_se_ss.errors import UserError
from unified_se_ss.training.log import check_upload, upload

KEPT = ["results.csv", "save/CKPT+best/network.ckpt", "wavs/a/enhanced.wav"]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name in (*KEPT, "save/CKPT+last/network.ckpt", "manifests/train.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_a_folder_gets_results_and_the_one_checkpoint(run, tmp_path):
    to = tmp_path / "bucket" / "here"
    assert upload(run, run / "save/CKPT+best", str(to)) == str(to)
    there = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert sorted(there) == KEPT
    assert (to / "results.csv").read_text() == "results.csv"


def test_memory_gets_the_same_and_a_second_time_too(run):
    memory = fsspec.filesystem("memory")
    for _ in range(2):
        assert upload(run, run / "save/CKPT+best", "memory://bucket/run")
    assert sorted(memory.find("/bucket/run")) == [f"/bucket/run/{name}" for name in KEPT]
    memory.rm("/bucket", recursive=True)


def test_a_failure_in_the_middle_leaves_the_run_alone(run, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise ConnectionError("the network went away")

    system = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(system, "put_file", fail)
    assert upload(run, None, "memory://bucket/run") is None
    assert "the network went away" in caplog.text
    assert (run / "results.csv").read_text() == "results.csv"


def test_a_destination_that_there_is_not_is_said_before_the_run():
    with pytest.raises(UserError, match="upload_uri: nowhere://x: .*expected such as"):
        check_upload("nowhere://x")


def test_a_missing_package_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match="upload_uri: s3://bucket: Install s3fs"):
        check_upload("s3://bucket")
