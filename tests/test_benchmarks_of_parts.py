"""Benchmarks of evaluation, data and inference: they run, and both sides compute the same."""

import dataclasses
import json

import pytest

from benchmarks import (
    binaural_mixing,
    binaural_streaming,
    data,
    evaluation,
    gsenet_streaming,
    inference,
)
from benchmarks.frame import Options
from unified_se_ss.data.binaural import BinauralDynamicMixing
from unified_se_ss.data.dataset import ItemKey
from unified_se_ss.spatial import spherical_head

QUICK = Options(quick=True, repeats=1)


def rows_of(benchmark):
    """The rows of a quick run by table; every table can be printed and written."""
    found = []
    for table in benchmark.run(QUICK):
        assert table.rows and all(table.columns[0] in row for row in table.rows)
        assert table.title in table.as_markdown()
        json.dumps(table.rows)
        found.append(table.rows)
    return found


def test_evaluation_agrees_with_mir_eval():
    pytest.importorskip("mir_eval")
    alone, whole_set = rows_of(evaluation)
    assert [row["sources"] for row in alone] == [2, 2, 2, 3, 3, 3]
    differences = [row["largest difference dB"] for row in alone if row["way"] == "here"]
    assert len(differences) == 2 and max(differences) < evaluation.AIM_DB
    assert [row["processes"] for row in whole_set] == [1]


def test_data_sets_give_what_whole_files_give():
    """Dynamic mixing and fixed mixtures, from every kind of file."""
    *compared, loaders = rows_of(data)
    assert len(compared) == 2 * len(data.ENDINGS)
    for rows in compared:
        assert [row["way"] for row in rows] == ["whole files", "here"]
        assert rows[1]["largest difference"] < 1e-6
    assert {row["files"] for row in loaders} == set(data.ENDINGS)
    assert all(row["items/s"] > 0 for row in loaders)


@pytest.mark.slow
def test_inference_agrees_with_speechbrain_and_with_itself():
    unified, chunks, others = rows_of(inference)
    differences = {
        (row["model"], row["way"]): row["relative difference"] for row in unified + others
    }
    for kind in inference.UNIFIED:
        assert differences[kind, "here"] < 1e-4
        assert differences[kind, "here, bf16"] < 0.1
    streams = [d for (_, way), d in differences.items() if way.startswith("stream")]
    assert len(streams) == 4 and max(streams) < 1e-5
    assert [row["way"] for row in chunks[:2]] == ["whole", "chunks of 0.5 s"]
    assert chunks[1]["peak MiB"] < chunks[0]["peak MiB"]


@pytest.mark.slow
def test_streams_by_block_give_what_the_whole_gives():
    for benchmark in (binaural_streaming, gsenet_streaming):
        (rows,) = rows_of(benchmark)
        streamed = [row for row in rows if row.get("difference") is not None]
        assert streamed and max(row["difference"] for row in streamed) < 1e-5
        assert all(row["real-time factor"] > 0 for row in rows)


def test_engines_that_are_not_there_are_said(monkeypatch):
    monkeypatch.setattr(gsenet_streaming, "missing", lambda engine: ["onnx"])
    (table,) = gsenet_streaming.run(QUICK)
    assert [row["engine"] for row in table.rows] == ["whole signal"]
    assert "onnx is left out: onnx not installed" in table.note


def test_binaural_mixing_measures_every_kind():
    for rows in rows_of(binaural_mixing):
        assert [row["kind"] for row in rows] == ["recipe", "plain", "here"]
        assert all(row["items/s"] > 0 for row in rows)


def test_the_plain_way_gives_what_binaural_mixing_gives(tmp_path):
    """One source, one head, one direction, whole files: both ways, sample by sample."""
    speech, _ = binaural_mixing.write_voices(tmp_path, 0.5)
    speech = dataclasses.replace(speech, items=speech.items[:1])
    head = spherical_head(8000, azimuth=[40.0])
    plain = binaural_mixing.Plain(speech, None, [head], 1, 9.0)
    here = BinauralDynamicMixing(speech, None, [head], 1, 1, 0, 9.0, 8000)
    ours, (theirs, _) = here[0].mixture, plain[ItemKey(0, 0)]
    theirs = theirs[:, head.latency :]  # the plain way keeps the filters' latency
    ours = ours[:, : theirs.shape[1]]
    scale = (ours * theirs).sum() / theirs.square().sum()
    assert (ours - scale * theirs).abs().max() < 1e-5
