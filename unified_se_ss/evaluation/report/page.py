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
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 70rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 1rem; }
dt { font-size: .75rem; color: #666; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
thead th { font-size: .8rem; color: #555; border-bottom: 1px solid #999; }
tbody th { font-weight: 500; }
.settings th, .settings td { text-align: left; vertical-align: top;
  overflow-wrap: anywhere; font-size: .85rem; }
.small { font-size: .85rem; color: #555; margin: .5rem 0; }
.example { border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem;
  margin: 1rem 0; }
.example p { margin: .2rem 0 .6rem; font-size: .9rem; }
.rank { font-weight: 400; color: #666; font-size: .85rem; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); }
figure { margin: 0 0 .8rem; }
figcaption { font-size: .85rem; font-weight: 600; }
audio { width: 100%; height: 2.2rem; }
.scroll { max-height: 32rem; overflow: auto; border: 1px solid #ddd; }
.sortable { width: 100%; font-size: .85rem; }
.sortable thead th { position: sticky; top: 0; background: #f6f6f6; cursor: pointer; }
.sortable th[aria-sort=ascending]::after { content: " ▲"; }
.sortable th[aria-sort=descending]::after { content: " ▼"; }
</style>
</head>
<body>
@BODY@
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
      if (Number.isNaN(difference)) difference = text(a).localeCompare(text(b));
      return up ? difference : -difference;
    };
    body.append(...[...body.rows].sort(order));
  }));
}
</script>
</body>
</html>
"""
