"""From the figures of the rounds to medians, ratios, and a table."""

import statistics

# Key, heading, decimals; a row shows those that it has.
COLUMNS = [
    ("cpu_us_per_request", "CPU µs/req", 1),
    ("cpu_s_per_gib", "CPU s/GiB", 3),
    ("p50_ms", "p50 ms", 2),
    ("p99_ms", "p99 ms", 2),
    ("peak_mb", "peak MB", 0),
    ("idle_mb", "idle MB", 0),
    ("connected_mb", "connected MB", 0),
    ("asked_upstream", "asked upstream", 0),
    ("sent_by_upstream", "sent, × size", 2),
]
# Of these a ratio to nginx proxy_cache is shown as well.
RELATED = ("cpu_us_per_request", "cpu_s_per_gib", "p99_ms")
OWN = "pierhead"
SHORT = {"peer": "best peer", "nginx-cache": "cache", "direct": "direct"}


def summarize(row, rounds, skipped):
    """One row's result. `rounds` is, per server, the figures of each round."""
    results = {name: {"rounds": figures, "median": median_of(figures)} for name, figures in rounds.items() if figures}
    best = best_peer(row, results)
    for name, result in results.items():
        result["against"] = {}
        for whom in row.against:
            other = best if whom == "peer" else whom
            if other in results:
                result["against"][whom] = compared(row, result["rounds"], results[other]["rounds"], "value")
        if "nginx-cache" in results:
            others = results["nginx-cache"]["rounds"]
            for key in set(RELATED) & set(result["median"]) & set(others[0]):
                result["against"][f"{key} nginx-cache"] = compared(row, result["rounds"], others, key)
    return {
        "name": row.name,
        "title": row.title,
        "unit": row.unit,
        "more_is_better": row.more_is_better,
        "is_difference": row.is_difference,
        "best_peer": best,
        "results": results,
        "skipped": skipped,
    }


def median_of(figures):
    return {key: statistics.median(figure[key] for figure in figures) for key in figures[0]}


def best_peer(row, results):
    peers = {n: r["median"]["value"] for n, r in results.items() if n not in (OWN, "direct")}
    choose = max if row.more_is_better else min
    return choose(peers, key=peers.get) if peers else None


def compared(row, own, others, key):
    """The median of each round's own ratio: what drifts from round to round falls out of it."""
    pairs = [(a[key], b[key]) for a, b in zip(own, others)]
    if row.is_difference and key == "value":
        return statistics.median(a - b for a, b in pairs)
    ratios = [a / b for a, b in pairs if b]  # CPU comes in ticks of 10 ms: a short row may have none
    return statistics.median(ratios) if ratios else None


def table(row, titles):
    """A row's figures as aligned text."""
    columns = [*value_columns(row), *figure_columns(row)]
    lines = [["", *(heading for heading, _ in columns)]]
    for name, result in row["results"].items():
        lines.append([titles[name], *(show(result) for _, show in columns)])
    text = [f"\n{row['title']}"] + aligned(lines)
    text += [f"  {titles[name]}: {why}" for name, why in row["skipped"].items()]
    return "\n".join(text)


def value_columns(row):
    """What the row is about, and how it compares; each column is a heading and what it shows of a result."""
    yield row["unit"], lambda result: number(result["median"]["value"])
    sign = "−" if row["is_difference"] else "÷"
    for whom in used(row, "against"):
        if " " not in whom:
            yield f"{sign} {SHORT[whom]}", lambda result, whom=whom: cell(result["against"].get(whom), 2)


def figure_columns(row):
    keys = used(row, "median")
    ratios = used(row, "against")
    for key, heading, decimals in COLUMNS:
        if key in keys:
            yield heading, lambda result, key=key, decimals=decimals: cell(result["median"].get(key), decimals)
        ratio = f"{key} nginx-cache"
        if ratio in ratios:
            yield "÷ cache", lambda result, ratio=ratio: cell(result["against"].get(ratio), 2)


def used(row, part):
    """The keys that any server has in that part of its result."""
    return dict.fromkeys(key for result in row["results"].values() for key in result[part])


def cell(value, decimals):
    return "" if value is None else f"{value:,.{decimals}f}"


def number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def aligned(lines):
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(max(map(len, lines)))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
        for line in lines
    ]
