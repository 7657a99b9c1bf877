"""The figures as a bar chart for the README: plain SVG that reads well on white and on black.

A bar says how many times as good as nginx's proxy_cache a server did in a row, so that longer is better whether the row
is about a rate, a time or memory; in a row without it, the server to beat is distribution. All bars have one scale.
"""

import statistics
from html import escape

from report import OWN, number

BASES = ("nginx-cache", "distribution")
COLOURS = {
    "pierhead": "#2f81f7",
    "nginx-cache": "#57ab5a",
    "nginx-file": "#8b949e",
    "distribution": "#d29922",
    "direct": "#a371f7",
}
STYLE = """
  text { font: 11px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
  .title { font-weight: 600; }
  .faint { fill: #59636e; }
  .mark { stroke: #59636e; stroke-dasharray: 2 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .faint { fill: #9198a1; } .mark { stroke: #9198a1; }
  }
"""
# Pixels: two columns of groups; a bar of FULL is MOST times as good, and a longer one is cut and marked.
WIDTH, COLUMN, FULL, BAR, STEP, TITLE, GAP, MARGIN = 860, 440, 210, 9, 13, 18, 12, 12
MOST = 3.0


def chart(results, titles):
    """The whole picture; rows without Pierhead or without anybody to compare it with are left out."""
    rows = [row for row in results["rows"] if OWN in row["results"] and base_of(row)]
    scale = FULL / min(MOST, max((times for row in rows for times in ratios(row).values()), default=1.0))
    captions, top = heading(results["about"], rows, titles)
    parts, bottom = [], top
    halves = columns(rows)
    for number_of, half in enumerate(halves):
        y = top
        for row in half:
            group, y = group_of(row, number_of * COLUMN, y, scale)
            parts += group
        bottom = max(bottom, y)
    wide, high = WIDTH + 2 * MARGIN, bottom + 2 * MARGIN
    size = f'viewBox="-{MARGIN} -{MARGIN} {wide} {high}" width="{wide}" height="{high}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Pierhead beside nginx and distribution</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *captions, *parts, "</svg>\n"])


def base_of(row):
    """Whom a row's servers are compared with."""
    return next((name for name in BASES if name in row["results"]), None)


def ratios(row):
    """By server, how many times as good as the base it was: the median of the rounds' own ratios."""
    base = row["results"][base_of(row)]["rounds"]
    found = {}
    for name, result in row["results"].items():
        pairs = [(own["value"], other["value"]) for own, other in zip(result["rounds"], base)]
        if not row["more_is_better"]:
            pairs = [(other, own) for own, other in pairs]
        shares = [a / b for a, b in pairs if b > 0]
        if shares:
            found[name] = statistics.median(shares)
    return found


def heading(about, rows, titles):
    """What is shown, of when, on what; and which colour is whose. Also: where the groups begin."""
    machine = f"{about['cpus']} cores ({about['cpu']}), kernel {about['kernel']}"
    if "congestion" in about:
        machine += f", TCP {about['congestion']}"
    lines = [
        "How many times as good as nginx’s proxy_cache (dashed line); without it, as distribution. Longer is better.",
        f"{about['date']}, {machine}, the load generator beside the servers; medians of up to {about['rounds']} rounds.",
    ]
    if about.get("congestion", "").startswith("bbr"):
        lines.append("BBR slows plain blobs over loopback down for the others and not for Pierhead: benches/README.md has both.")
    if about.get("quick"):
        lines[0] = "A trial over less content, which measures nothing (--quick)."
    parts = [f'<text class="faint" x="0" y="{12 + 16 * n}">{escape(line)}</text>' for n, line in enumerate(lines)]
    x, y = 0, 9 + 16 * len(lines)
    for name in COLOURS:
        if any(name in row["results"] for row in rows):
            parts.append(f'<rect x="{x}" y="{y}" width="11" height="11" rx="2" fill="{COLOURS[name]}"/>')
            parts.append(f'<text x="{x + 16}" y="{y + 10}">{escape(titles[name])}</text>')
            x += 34 + 7 * len(titles[name])
    return parts, y + 25


def columns(rows):
    """The rows in their order, in two columns that are about equally high."""
    heights = [height(row) for row in rows]
    for count in range(len(rows) + 1):
        if sum(heights[:count]) >= sum(heights) / 2:
            return rows[:count], rows[count:]
    return rows, []


def height(row):
    return TITLE + STEP * len(row["results"]) + GAP


def group_of(row, x, y, scale):
    """A row's title and bars, and where the next one begins."""
    parts = [f'<text class="title" x="{x}" y="{y + 11}">{escape(row["title"])}</text>']
    top = y + TITLE
    found = ratios(row)
    order = [name for name in COLOURS if name in found]
    for place, name in enumerate(order):
        parts += bar(row, name, found[name], x, top + place * STEP, scale)
    at = x + scale
    parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 2}" y2="{top + STEP * len(order) - 2}"/>')
    return parts, y + height(row)


def bar(row, name, times, x, y, scale):
    width = max(1.0, min(times * scale, FULL))
    beside = max(width, scale) + 5  # never across the dashed line
    value = f"{number(row['results'][name]['median']['value'])} {row['unit']}"
    cut = "» " if times * scale > FULL + 0.5 else ""
    return [
        f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{BAR}" rx="1.5" fill="{COLOURS[name]}"/>',
        f'<text x="{x + beside:.1f}" y="{y + 9}">{cut}{times:.2f} × '
        f'<tspan class="faint">{escape(value)}</tspan></text>',
    ]
