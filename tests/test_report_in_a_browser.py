"""The report as a browser shows it: looked at, sorted, and played, without a network."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib.image import imread
from test_evaluation_report import report, run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason=f"there is none of {', '.join(BROWSERS)}; install the package chromium",
    ),
]

#: Runs in the page when it has loaded: what a reader would do, and what comes of it.
READER = """
<script>
addEventListener("load", async () => {
  const found = {}, text = column => [...document.querySelectorAll(
    ".sortable tbody tr")].map(row => row.cells[column].textContent);
  const heads = [...document.querySelectorAll(".sortable th button")];
  const column = heads.findIndex(head => head.textContent.startsWith("SI-SNRi"));
  found.first = text(column);
  heads[column].focus(); heads[column].click();
  found.sort = heads[column].parentElement.getAttribute("aria-sort");
  found.up = text(column);
  heads[column].click();
  found.down = text(column);
  heads[0].click();
  found.names = text(0);
  const images = [...document.images];
  await Promise.all(images.map(image => image.decode()));
  found.images = images.map(image => [image.naturalWidth, image.alt !== ""]);
  const players = [...document.querySelectorAll("audio")];
  await Promise.all(players.map(player => player.readyState > 0 ? 0 : new Promise(
    done => { player.onloadedmetadata = player.onerror = done; player.load(); })));
  found.seconds = players.map(player => player.duration);
  found.links = [...document.querySelectorAll("a")].filter(
    link => !document.getElementById(decodeURIComponent(link.hash.slice(1)))).length;
  found.wide = document.documentElement.scrollWidth > innerWidth;
  found.background = getComputedStyle(document.body).backgroundColor;
  found.text = getComputedStyle(document.body).color;
  const note = document.createElement("pre");
  note.id = "found"; note.textContent = JSON.stringify(found);
  document.body.append(note);
});
</script></body>"""


def browse(*options):
    """Run the browser without a window and without a network."""
    quiet = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars".split()
    alone = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
    command = [BROWSER, *quiet, *alone, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


def read(page, tmp_path, *options):
    """What a reader finds in a report."""
    copy = tmp_path / "read.html"
    text = page.read_text(encoding="utf-8").replace("</body>", READER)
    copy.write_text(text, encoding="utf-8")
    dom = browse("--dump-dom", f"--user-data-dir={tmp_path}/p", *options, copy.as_uri())
    match = re.search(r'<pre id="found">(.*?)</pre>', dom.stdout, re.DOTALL)
    assert match, "the page's own scripts did not run to their end"
    return json.loads(match[1])


@pytest.fixture
def page(tmp_path):
    rows, log_rows, examples, configuration = run(count=12)
    rows[3]["si_snr_i"] = None
    for row, overlap in zip(rows, np.linspace(10, 100, 12)):
        row.update(overlap=overlap, duration=0.5, input_snr=None)
    return report(tmp_path / "report", rows, log_rows, examples, configuration)[1]


def test_it_is_sorted_shown_and_played_and_fits_a_telephone(page, tmp_path):
    found = read(page, tmp_path, "--window-size=1200,900")
    numbers = [f"{i:.2f}" for i in range(12) if i != 3]
    assert found["first"] == found["up"] == [*numbers, ""]  # the worst come first
    assert found["down"] == [*numbers[::-1], ""] and found["sort"] == "ascending"
    assert found["names"] == [f"item {i}" for i in range(12)]  # 2 before 10
    assert found["images"] and all(width > 0 and alt for width, alt in found["images"])
    assert found["seconds"] == pytest.approx([0.5] * 16)
    assert found["links"] == 0 and not found["wide"]
    assert found["background"] == "rgb(255, 255, 255)"
    assert not read(page, tmp_path, "--window-size=500,900")["wide"]


def test_it_can_be_read_in_the_dark(page, tmp_path):
    found = read(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    paper, ink = (
        np.mean([int(n) for n in re.findall(r"\d+", found[key])[:3]])
        for key in ("background", "text")
    )
    assert paper < 40 and ink > 200


def test_a_picture_of_it_has_colours(page, tmp_path):
    picture = tmp_path / "picture.png"
    browse(
        f"--screenshot={picture}",
        f"--user-data-dir={tmp_path}/p",
        "--window-size=1200,3000",
        page.as_uri(),
    )
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (3000, 1200, 3)
    # Ink on every part of the way down, and spectrograms in colour.
    assert all(part.min() < 0.5 for part in np.array_split(pixels[:2000], 10))
    assert np.ptp(pixels, axis=2).max() > 0.5


def test_it_prints(page, tmp_path):
    paper = tmp_path / "report.pdf"
    browse(f"--print-to-pdf={paper}", f"--user-data-dir={tmp_path}/p", page.as_uri())
    assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
