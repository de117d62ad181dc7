"""The page around the sections: style and script, and no way out."""

from __future__ import annotations

#: The page; the policy in its head forbids every request, even to this machine.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --text: #1c1c1c; --faint: #5a5a5a; --line: #ddd;
  --page: #fff; --raised: #f6f6f6; --link: #0b57d0; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
h1 { font-size: 1.7rem; margin-bottom: .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: .8rem 0 .3rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1rem; }
dt { font-size: .75rem; color: var(--faint); }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
thead th { font-size: .8rem; color: var(--faint); border-bottom: 1px solid var(--faint); }
tbody th { font-weight: 500; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
.settings th, .settings td { text-align: left; vertical-align: top;
  overflow-wrap: anywhere; font-size: .85rem; }
.small { font-size: .85rem; color: var(--faint); margin: .5rem 0; }
.scale { display: flex; gap: .6rem; align-items: center; }
.colours { width: 10rem; height: .8rem; background: linear-gradient(to right, #000004,
  #1c1044, #4f127b, #812581, #b5367a, #e55964, #fb8861, #fec287, #fcfdbf);
  print-color-adjust: exact; }
.example { border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  margin: 1rem 0; break-inside: avoid; }
.example h3 { margin: 0; }
.example p { margin: .2rem 0 .6rem; font-size: .9rem; }
.rank { font-weight: 400; color: var(--faint); font-size: .85rem; }
.cards { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
figure { margin: 0 0 .8rem; }
figcaption { font-size: .85rem; font-weight: 600; }
.spectrogram { position: relative; overflow: hidden; }
.spectrogram img { width: 100%; height: 8rem; image-rendering: pixelated; }
.spectrogram span { position: absolute; padding: 0 .3rem; font-size: .7rem; color: #fff;
  background: rgb(0 0 0 / .55); }
.spectrogram .top { left: 0; top: 0; }
.spectrogram .end { right: 0; bottom: 0; }
.cursor { position: absolute; top: 0; bottom: 0; left: -2px; width: 2px;
  background: #4fd1ff; }
audio { width: 100%; height: 2.2rem; }
.scroll { max-height: 32rem; overflow: auto; border: 1px solid var(--line); }
.sortable { width: 100%; font-size: .85rem; }
.sortable thead th { position: sticky; top: 0; background: var(--raised); padding: 0; }
.sortable td:first-child { min-width: 8rem; }
.sortable button { all: unset; box-sizing: border-box; width: 100%; padding: .3rem .8rem;
  cursor: pointer; }
.sortable button:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
.sortable th[aria-sort=ascending] button::after { content: " ▲"; }
.sortable th[aria-sort=descending] button::after { content: " ▼"; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --faint: #a3a3a3; --line: #3c3c3c; --page: #161616;
    --raised: #242424; --link: #8ab4f8; }
  .plot { filter: invert(.91) hue-rotate(180deg); }
}
@media print {
  body { max-width: none; margin: 0; }
  nav, audio { display: none; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  .spectrogram img { print-color-adjust: exact; }
}
</style>
</head>
<body>
<main>
@BODY@
</main>
<script>
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = row => row.cells[column].textContent;
    const order = (a, b) => {
      if (text(a) === "" || text(b) === "") return (text(a) === "") - (text(b) === "");
      let difference = Number(text(a)) - Number(text(b));
      if (Number.isNaN(difference)) {
        difference = text(a).localeCompare(text(b), "en", { numeric: true });
      }
      return up ? difference : -difference;
    };
    body.append(...[...body.rows].sort(order));
  }));
}
for (const example of document.querySelectorAll(".example")) {
  const players = [...example.querySelectorAll("audio")];
  for (const player of players) {
    const cursor = player.parentElement.querySelector(".cursor");
    player.addEventListener("play", () => {
      for (const other of players) {
        if (other === player || other.paused) continue;
        other.pause();
        player.currentTime = other.currentTime;
      }
    });
    player.addEventListener("timeupdate", () => {
      cursor.style.left = 100 * player.currentTime / player.duration + "%";
    });
  }
}
</script>
</body>
</html>
"""
