"""The report: whole, self-contained, small, and not to be scripted from outside."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats
import soundfile

from unified_se_ss.evaluation import report as reporting
from unified_se_ss.evaluation.audio_examples import (
    COLUMNS,
    EXCERPTS,
    ROWS,
    _spectrogram_db,
    _spectrogram_png,
    choose_examples,
)
from unified_se_ss.evaluation.breakdown import _breakdown, _with_input
from unified_se_ss.evaluation.plots import Picture, Section, Table, Text
from unified_se_ss.evaluation.report import SIZE_LIMIT, _write_report
from unified_se_ss.evaluation.results import summarise

HOSTILE = "<script>alert('1')</script>\"&"
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.references += [v for k, v in attributes if k in ("src", "href", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def example(row, signals, rate=8000):
    return {"id": row["ID"], "signals": signals, "sample_rate": rate, "metrics": row}


def sounds(page):
    """The sounds of all players."""
    data = [a["src"].partition(",")[2] for tag, a in page.tags if tag == "audio"]
    return [soundfile.read(io.BytesIO(base64.b64decode(sound))) for sound in data]


def run(samples=4000, count=8):
    rng = np.random.default_rng(0)
    fixed = {"si_snr_1": 1.0, "permutation": (0, 1)}
    rows = [
        {"ID": f"item {i}", "si_snr": rng.normal(9, 3), "si_snr_i": float(i), **fixed}
        for i in range(count)
    ]
    names = ("mixture", "enhanced", "s1_estimate", "s1_reference")
    examples = [
        example(row, {name: 0.1 * rng.standard_normal(samples) for name in names})
        for row in rows[::-3]
    ]
    log_rows = [{"epoch": e, "valid_si_snr_i": 1.0 + e} for e in (1, 2)]
    configuration = {
        "recipe": "hparams/demo.yaml",
        "rule": "project",
        "parameters": 1234567,
        "lr": 1e-3,
        "page": "https://example.org/model",
    }
    return rows, log_rows, examples, configuration


def report(
    folder, rows, log_rows, examples, configuration, title="A run", notes=(), **more
):
    more |= {"log_rows": log_rows, "configuration": configuration, "notes": notes}
    path = _write_report(folder, title, summarise(rows), rows, examples, **more)
    return Page(path.read_text(encoding="utf-8")), path


def test_report_is_one_file_that_asks_for_nothing(tmp_path):
    page, path = report(tmp_path / "new", *run(), notes=["First.", "Second."])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    assert page.references
    for reference in page.references:
        assert reference.startswith(("data:image/png;base64,", "data:audio/flac;", "#"))
    style = "".join(page.text["style"] + page.text["script"])
    assert "url(" not in style and "import" not in style and "//" not in style
    assert page.text["h1"] == ["A run"] and page.text["p"][:2] == ["First.", "Second."]
    assert "1,234,567" in page.text["dd"]


def test_report_holds_results_and_examples_worst_first(tmp_path):
    rows, log_rows, examples, configuration = run()
    page, _ = report(tmp_path, rows, log_rows, examples, configuration)
    mean = np.mean([row["si_snr_i"] for row in rows])
    assert f"{mean:.2f}" in page.text["b"]
    assert page.count("section") == 3 and page.count("audio") == 12
    assert page.count("img") == 12 + 2
    names = [text.strip() for text in page.text["h3"] if text.strip()]
    assert names == ["item 1", "item 4", "item 7"]
    ids = {attributes.get("id") for _, attributes in page.tags}
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    sections = {a["id"] for tag, a in page.tags if tag == "h2"}
    assert links <= ids and links == sections | {f"example-{i}" for i in range(3)}


def test_players_hold_the_signals(tmp_path):
    rows, log_rows, examples, configuration = run()
    page, _ = report(tmp_path, rows, log_rows, examples[-1:], configuration)
    # A column for the mixture, then one for each source.
    signals = examples[-1]["signals"].values()
    for (samples, rate), signal in zip(sounds(page), signals, strict=True):
        assert rate == 8000
        np.testing.assert_allclose(samples, signal, atol=1 / 32768)


def test_loud_examples_share_one_gain(tmp_path):
    rows, log_rows, examples, configuration = run()
    signals = {"mixture": np.array([0.0, 2.0, -1.0]), "s1_estimate": np.full(3, 0.5)}
    examples = [{**examples[0], "signals": signals}]
    page, _ = report(tmp_path, rows, log_rows, examples, configuration)
    for (sound, _), signal in zip(sounds(page), signals.values(), strict=True):
        np.testing.assert_allclose(sound, signal * 0.495, atol=1e-4)


def test_what_comes_from_outside_is_escaped(tmp_path):
    rows, log_rows, examples, configuration = run()
    rows[7]["ID"] = examples[0]["id"] = HOSTILE
    examples[0]["signals"] = {HOSTILE: np.zeros(100)}
    rows[0][HOSTILE] = HOSTILE
    configuration |= {HOSTILE: HOSTILE, "rule": HOSTILE, "list": [HOSTILE]}
    table = Table([HOSTILE], [[HOSTILE] * 2])
    parts = [HOSTILE, Text(HOSTILE), Picture(b"", HOSTILE), table]
    page, path = report(
        tmp_path,
        *(rows, log_rows, examples, configuration, HOSTILE, [HOSTILE]),
        findings=[Section("found", HOSTILE, parts)],
        gradient_rows=[{"epoch": 1, "step": 9, "scope": "all", "compared": 8}],
    )
    assert page.count("script") == 1 and "alert" not in "".join(page.text["script"])
    assert HOSTILE not in path.read_text(encoding="utf-8")
    for tag in ("h1", "h2", "title", "h3", "p", "dd", "figcaption", "th", "td", "a"):
        assert any("alert('1')" in text for text in page.text[tag]), tag


def of_noise(monkeypatch, count, seconds):
    """Rows, log, examples that no codec makes smaller, at 8 kHz; and a limit of 3 MB."""
    monkeypatch.setattr(reporting, "SIZE_LIMIT", 3_000_000)
    rows, log_rows, _, configuration = run(count=count)
    long = 0.1 * np.random.default_rng(0).standard_normal(8000 * seconds)
    signals = dict.fromkeys(["mixture", "enhanced", "s1_estimate", "s1_reference"], long)
    return rows, log_rows, [example(row, dict(signals)) for row in rows], configuration


def test_long_examples_are_cut_so_that_all_fit(tmp_path, monkeypatch):
    rows, log_rows, examples, configuration = of_noise(monkeypatch, 5, seconds=40)
    for name, signal in examples[0]["signals"].items():
        examples[0]["signals"][name] = signal[:2000]
    page, path = report(tmp_path, rows, log_rows, examples, configuration)
    assert page.count("section") == 5
    assert 0.5 * 3_000_000 < path.stat().st_size < 3_000_000
    seconds = {len(sound) / rate for sound, rate in sounds(page)}
    # One length for all that are longer; the short one is whole.
    assert min(seconds) == 0.25 and len(seconds) == 2
    assert max(seconds) in EXCERPTS[1:-1]
    assert sum("of 40.0 s" in text for text in page.text["span"]) == 4


def test_what_still_does_not_fit_is_left_out_and_counted(tmp_path, monkeypatch):
    page, path = report(tmp_path, *of_noise(monkeypatch, 20, seconds=3))
    shown = page.count("section")
    assert 3 < shown < 20 and path.stat().st_size < 3_000_000
    left_out = f"Left out to keep this file small: {20 - shown}."
    assert any(left_out in text for text in page.text["p"])
    # Those that are there are the worst, and the table links to no other.
    assert page.text["h3"][-shown:] == [f"item {i} " for i in range(shown)]
    links = [a for tag, a in page.tags if tag == "a" and "example-" in a["href"]]
    assert len(links) == shown


def test_a_table_of_very_many_rows_leaves_room(tmp_path):
    rows, log_rows, examples, configuration = run(count=9)
    rows += [{**rows[0], "ID": f"{i:06d}" + 60 * "x", "si_snr_i": i} for i in range(6000)]
    page, path = report(tmp_path, rows, log_rows, examples, configuration)
    assert path.stat().st_size < SIZE_LIMIT and page.count("section") == len(examples)
    assert any("The worst 5000 of 6009" in text for text in page.text["p"])


def test_report_of_little(tmp_path):
    rows = [{"ID": "a", "si_snr": None, "si_snr_i": None}]
    page, _ = report(tmp_path, rows, [], [], {})
    assert page.count("section") == 0 and page.count("img") == 0
    assert page.text["h2"] == ["Results", "All utterances"]


@pytest.mark.parametrize("worst, others", [(10, 5), (3, 1), (1, 0), (50, 5), (38, 9)])
def test_the_worst_are_chosen_and_others_at_random(worst, others):
    ranking = [str(place) for place in range(40)]
    chosen = [int(name) for name in choose_examples(ranking, worst, others)]
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) == min(worst, 40) + min(others, max(0, 40 - worst))
    assert chosen == sorted(chosen) and chosen[:worst] == list(range(min(worst, 40)))
    assert choose_examples(ranking, worst, others) == [str(v) for v in chosen]


def test_the_others_are_anywhere():
    """Over many evaluations, every utterance outside of the worst comes up as often."""
    counts = np.zeros(30)
    for extra in range(300):
        ranking = [str(place) for place in range(30 + extra)]
        for name in choose_examples(ranking, 10, 5)[10:]:
            counts[int(30 * (int(name) - 10) / (20 + extra))] += 1
    assert counts.sum() == 1500 and scipy.stats.chisquare(counts).pvalue > 1e-3


def test_breakdown_is_that_of_classes_made_by_hand():
    rng = np.random.default_rng(2)
    conditions = rng.uniform(0, 100, 53)
    rows = [
        {"overlap": c, "duration": 4.0, "si_snr": 5.0 + g, "si_snr_i": g}
        for c, g in zip(conditions, rng.normal(0, 3, 53))
    ]
    rows.append({"overlap": None, "duration": 4.0, "si_snr": None, "si_snr_i": None})
    found = {
        column.key: classes for column, classes in _breakdown(_with_input(rows)).items()
    }
    # The duration does not vary; the mixture's SI-SNR of 5 dB neither, but for rounding.
    assert list(found) == ["overlap"]
    classes = found["overlap"]
    assert [part.count for part in classes] == [10, 11, 10, 11, 11]
    for low, high, _, metrics in classes:
        inside = [r["si_snr_i"] for r in rows[:-1] if low <= r["overlap"] <= high]
        metric = metrics["si_snr_i"]
        assert metric.mean == pytest.approx(np.mean(inside)) and metric.empty == 0


def test_breakdown_never_tears_equal_conditions_apart():
    rows = [{"overlap": 100.0, "si_snr_i": float(i)} for i in range(30)]
    rows += [{"overlap": float(i), "si_snr_i": 0.0} for i in range(5)]
    (classes,) = _breakdown(_with_input(rows)).values()
    assert [(part.low, part.high) for part in classes] == [(0.0, 4.0), (100.0, 100.0)]
    assert _breakdown(_with_input(rows[:30])) == _breakdown(_with_input(rows[28:35])) == {}


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_spectrogram_shows_a_sine_where_it_is(rate):
    samples = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    level = _spectrogram_db(samples, rate)
    loudest = level.mean(axis=1).argmax() * rate / 2 / (len(level) - 1)
    assert loudest == pytest.approx(1000, abs=32)
    assert level.max() == pytest.approx(0.0, abs=0.2)
    assert _spectrogram_db(np.zeros(3), rate).shape[1] == 1


def pixels(png):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int).sum(axis=2)


def test_spectrograms_share_the_scale_they_are_given():
    level = np.full((40, 50), -200.0)
    level[10, 20], level[30, 5] = 0.0, -35.0
    picture = pixels(_spectrogram_png(level, 0.0))
    assert picture.shape == (40, 50)
    # Low frequencies at the bottom; the louder, the brighter; -70 dB and less is dark.
    assert picture[39 - 10, 20] == picture.max() > picture[39 - 30, 5] > picture.min()
    assert pixels(_spectrogram_png(level, 35.0))[39 - 10, 20] == picture[39 - 30, 5]


def test_large_spectrograms_keep_their_peaks_and_stay_small():
    level = np.random.default_rng(0).uniform(-69, -1, (1025, 5000))
    level[500, 3000] = 0.0
    png = _spectrogram_png(level, 0.0)
    picture = pixels(png)
    assert picture.shape == (ROWS, COLUMNS) and len(png) < 31_500
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert abs((ROWS - 1 - row) / ROWS - 500 / 1025) < 0.02
    assert abs(column / COLUMNS - 3000 / 5000) < 0.02
