"""The figures as a bar chart for the README: plain SVG that reads well on white and on black."""

from html import escape

from report import number

COLOURS = {
    "pierhead": "#2f81f7",
    "nginx-file": "#8b949e",
    "nginx-cache": "#57ab5a",
    "distribution": "#d29922",
    "direct": "#8b949e",
}
STYLE = """
  text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 13px; }
  .faint { fill: #59636e; }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .faint { fill: #9198a1; } }
"""
LEFT, BAR, STEP, GAP, WIDTH, FULL = 132, 13, 17, 34, 760, 470


def chart(results, titles):
    """One group of bars per row. Units differ from row to row, so each row's longest bar is its own."""
    about = results["about"]
    machine = f"{about['cpus']} cores ({about['cpu']}), the load generator beside the servers"
    captions = [
        f"{machine}. {about['date']}, medians of {about['rounds']} rounds.",
        "“×” is beside nginx's proxy_cache, and in cold pulls beside no mirror.",
    ]
    parts = [f'<text class="faint" x="0" y="{14 + 16 * n}">{escape(text)}</text>' for n, text in enumerate(captions)]
    y = 46
    for row in results["rows"]:
        if row["results"]:
            group, y = group_of(row, titles, y)
            parts += group
    size = f'viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    title = "<title>Pierhead beside nginx and distribution</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def group_of(row, titles, y):
    wish = "more is better" if row["more_is_better"] else "less is better"
    title = f'<tspan class="title">{escape(row["title"])}</tspan>'
    parts = [f'<text x="0" y="{y + 12}">{title} <tspan class="faint">· {escape(row["unit"])}, {wish}</tspan></text>']
    y += 22
    longest = max(result["median"]["value"] for result in row["results"].values())
    for name, result in row["results"].items():
        value = result["median"]["value"]
        width = max(1.0, FULL * value / longest)
        parts.append(f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(titles[name])}</text>')
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{LEFT + width + 6:.1f}" y="{y + 11}">{number(value)}{compared(row, result)}</text>')
        y += STEP
    return parts, y + GAP - STEP


def compared(row, result):
    """How it compares with no mirror, else with nginx's."""
    for whom in ("direct", "nginx-cache"):
        found = result["against"].get(whom)
        if found is not None:
            text = f"{found:+.1f}" if row["is_difference"] else f"{found:.2f} ×"
            return f' <tspan class="faint">{text}</tspan>'
    return ""
