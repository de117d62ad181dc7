"""The report: whole, self-contained, small, and not to be scripted from outside."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from unified_se_ss.evaluation.report import (
    SIZE_LIMIT,
    choose_examples,
    spectrogram_db,
    write_report,
)
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


def run(samples=4000, count=8):
    rng = np.random.default_rng(0)
    rows = [
        {
            "ID": f"item {i}",
            "si_snr": rng.normal(9, 3),
            "si_snr_i": float(i),
            "si_snr_1": 1.0,
            "permutation": (0, 1),
        }
        for i in range(count)
    ]
    names = ("mixture", "enhanced", "s1_estimate", "s1_reference")
    examples = [
        {
            "id": row["ID"],
            "signals": {name: 0.1 * rng.standard_normal(samples) for name in names},
            "sample_rate": 8000,
            "metrics": row,
        }
        for row in rows[::-3]
    ]
    log_rows = [
        {"epoch": 1, "valid_si_snr_i": 2.0},
        {"epoch": 2, "valid_si_snr_i": 3.0},
    ]
    configuration = {
        "recipe": "hparams/demo.yaml",
        "rule": "project",
        "parameters": 1234567,
        "lr": 1e-3,
        "page": "https://example.org/model",
    }
    return rows, log_rows, examples, configuration


def report(folder, rows, log_rows, examples, configuration, title="A run", notes=()):
    path = write_report(
        folder, title, summarise(rows), rows, log_rows, examples, configuration, notes
    )
    return Page(path.read_text(encoding="utf-8")), path


def test_report_is_one_file_that_asks_for_nothing(tmp_path):
    page, path = report(tmp_path / "new", *run(), notes=["First.", "Second."])
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    assert page.references
    for reference in page.references:
        assert reference.startswith(("data:image/png;base64,", "data:audio/wav;", "#"))
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
    assert len(links) == 3 and links <= ids


def test_players_hold_the_signals(tmp_path):
    rows, log_rows, examples, configuration = run()
    page, _ = report(tmp_path, rows, log_rows, examples[-1:], configuration)
    sounds = [a["src"].partition(",")[2] for tag, a in page.tags if tag == "audio"]
    # A column for the mixture, then one for each source.
    for sound, signal in zip(sounds, examples[-1]["signals"].values(), strict=True):
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)))
        assert rate == 8000
        np.testing.assert_allclose(samples, signal, atol=1 / 32768)


def test_loud_examples_share_one_gain(tmp_path):
    rows, log_rows, examples, configuration = run()
    signals = {"mixture": np.array([0.0, 2.0, -1.0]), "s1_estimate": np.full(3, 0.5)}
    examples = [{**examples[0], "signals": signals}]
    page, _ = report(tmp_path, rows, log_rows, examples, configuration)
    sounds = [a["src"].partition(",")[2] for tag, a in page.tags if tag == "audio"]
    found = [soundfile.read(io.BytesIO(base64.b64decode(s)))[0] for s in sounds]
    np.testing.assert_allclose(found[0], signals["mixture"] * 0.495, atol=1e-4)
    np.testing.assert_allclose(found[1], signals["s1_estimate"] * 0.495, atol=1e-4)


def test_what_comes_from_outside_is_escaped(tmp_path):
    rows, log_rows, examples, configuration = run()
    rows[7]["ID"] = examples[0]["id"] = HOSTILE
    examples[0]["signals"] = {HOSTILE: np.zeros(100)}
    rows[0][HOSTILE] = HOSTILE
    configuration |= {HOSTILE: HOSTILE, "rule": HOSTILE, "list": [HOSTILE]}
    page, path = report(
        tmp_path, rows, log_rows, examples, configuration, HOSTILE, [HOSTILE]
    )
    assert page.count("script") == 1 and "alert" not in "".join(page.text["script"])
    assert HOSTILE not in path.read_text(encoding="utf-8")
    for tag in ("h1", "title", "h3", "p", "dd", "figcaption", "th", "td", "a"):
        assert any("alert('1')" in text for text in page.text[tag]), tag


def test_report_stays_below_its_limit(tmp_path):
    rows, log_rows, examples, configuration = run(samples=700_000)
    page, path = report(tmp_path, rows, log_rows, examples, configuration)
    assert 0 < page.count("section") < len(examples)
    assert path.stat().st_size < SIZE_LIMIT
    assert any("Left out" in text for text in page.text["p"])
    assert len([tag for tag, _ in page.tags if tag == "a"]) == page.count("section")


def test_report_of_little(tmp_path):
    rows = [{"ID": "a", "si_snr": None, "si_snr_i": None}]
    page, _ = report(tmp_path, rows, [], [], {})
    assert page.count("section") == 0 and page.count("img") == 0
    assert page.text["h2"] == ["Results", "All utterances"]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 50])
def test_chosen_examples_hold_worst_and_best(count):
    values = np.random.default_rng(1).permutation(40)
    rows = [{"ID": str(v), "si_snr_i": float(v)} for v in values]
    rows.append({"ID": "silent", "si_snr_i": None})
    chosen = [int(name) for name in choose_examples(rows, count)]
    assert len(chosen) == len(set(chosen)) == min(count, 40)
    assert chosen == sorted(chosen) and chosen[0] == 0
    assert count == 1 or chosen[-1] == 39
    worst = (min(count, 40) + 1) // 2
    assert chosen[:worst] == list(range(worst))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_spectrogram_shows_a_sine_where_it_is(rate):
    samples = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    level = spectrogram_db(samples, rate)
    loudest = level.mean(axis=1).argmax() * rate / 2 / (len(level) - 1)
    assert loudest == pytest.approx(1000, abs=32)
    assert level.max() == pytest.approx(0.0, abs=0.2)
    assert spectrogram_db(np.zeros(3), rate).shape[1] == 1
