#!/usr/bin/env python3
"""Writes the Grafana dashboard, charts/pierhead/files/dashboard.json.

    generate.py             writes it
    generate.py --check     fails if the file is not what would be written
    generate.py --queries   prints every query, with its variables filled in, one `title<TAB>expression` a line; titles of
                            panels that may well be empty end in `?`

The dashboard is classic JSON, which every Grafana imports by file, by sidecar and by API: a fixed uid, so that links to it
stay good, and variables for the datasource, the job and the instance instead of inputs to fill in. To change it, change the
panels below; Grafana's own export carries everything it ever defaulted.
"""

import argparse
import json
import pathlib
import sys

OUT = pathlib.Path(__file__).resolve().parents[2] / "charts/pierhead/files/dashboard.json"

# Every query is narrowed by these.
WHERE = 'job=~"$job", instance=~"$instance"'
# The words of the label `cache` under which the body did not come from an upstream for this request alone.
SPARED = "hit|revalidated|stale|collapsed"

# What people connect with a word, the same in every panel.
COLOURS = {
    "{{cache}}": {"hit": "green", "revalidated": "semi-dark-green", "collapsed": "blue", "stale": "yellow",
                  "miss": "orange", "bypass": "purple", "none": "text"},
    "{{result}}": {"stored": "green", "broken": "red", "bad_upstream": "dark-red", "failed": "dark-orange",
                   "refused": "text"},
    "limit": {"limit": "red"},
}

# Panels in which nothing is nothing to wonder about: few upstreams tell a limit, a young cache evicts nothing, and where
# everybody may come in nothing is decided.
MAY_BE_EMPTY = {"Rate limit left", "Rate limit left by upstream", "Evicted objects", "Decisions on access"}

panels = []
x = y = row_height = 0


def row(title):
    global x, y, row_height
    y, x, row_height = y + row_height, 0, 0
    panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                   "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
    y += 1


def panel(kind, title, queries, *, unit="short", w=8, h=8, about="", options=None, defaults=None):
    """One panel, to the right of the last or below it. `queries` is a list of (legend, expression)."""
    global x, y, row_height
    if x + w > 24:
        x, y, row_height = 0, y + row_height, 0
    panels.append({
        "type": kind,
        "title": title,
        "description": about,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": w, "h": h},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expression.replace("WHERE", WHERE), "legendFormat": legend,
             "datasource": {"type": "prometheus", "uid": "${datasource}"}, "range": True}
            for i, (legend, expression) in enumerate(queries)
        ],
        "options": options or {},
        "fieldConfig": {
            "defaults": {"unit": unit, **(defaults or {})},
            "overrides": [
                {"matcher": {"id": "byName", "options": word},
                 "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]}
                for legend, _ in queries for word, colour in COLOURS.get(legend, {}).items()
            ],
        },
    })
    x += w
    row_height = max(row_height, h)


def graph(title, queries, *, stack=False, **more):
    custom = {"lineWidth": 1, "fillOpacity": 30 if stack else 8, "showPoints": "never", "spanNulls": True,
              "stacking": {"mode": "normal" if stack else "none"}}
    panel("timeseries", title, queries,
          defaults={"min": 0, "custom": custom, **more.pop("defaults", {})},
          options={"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                   "tooltip": {"mode": "multi", "sort": "desc"}},
          **more)


def stat(title, expression, *, steps=((None, "blue"),), **more):
    """`steps`: from which value on which colour."""
    panel("stat", title, [("", expression)], w=more.pop("w", 4), h=4,
          defaults={"thresholds": {"mode": "absolute", "steps": [{"value": v, "color": c} for v, c in steps]},
                    "color": {"mode": "thresholds"}, **more.pop("defaults", {})},
          options={"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area", "colorMode": "value",
                   "textMode": "auto", "justifyMode": "auto"},
          **more)


def quantiles(metric, by, *, where="WHERE", q=(0.5, 0.95)):
    """One line for each quantile of a histogram and each value of the label `by`."""
    return [(f"{{{{{by}}}}} p{round(quantile * 100)}",
             f"histogram_quantile({quantile}, sum by (le, {by}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))")
            for quantile in q]


# --- the answer to "is it well, and is it worth it" ------------------------------------------------------------------

row("Overview")
stat("Instances up", 'sum(up{WHERE})', steps=((None, "red"), (1, "green")))
stat("Hit ratio by requests",
     f'sum(increase(pierhead_requests_total{{WHERE, cache=~"{SPARED}"}}[$__range]))'
     ' / sum(increase(pierhead_requests_total{WHERE, cache!="none"}[$__range]))',
     unit="percentunit", about="Requests for content that were answered without fetching it for them alone.",
     steps=((None, "orange"), (0.5, "yellow"), (0.8, "green")))
stat("Hit ratio by bytes",
     f'sum(increase(pierhead_response_bytes_total{{WHERE, cache=~"{SPARED}"}}[$__range]))'
     ' / sum(increase(pierhead_response_bytes_total{WHERE, cache!="none"}[$__range]))',
     unit="percentunit", about="Bytes sent to clients that were not fetched for them alone.",
     steps=((None, "orange"), (0.5, "yellow"), (0.8, "green")))
stat("Bytes saved",
     'clamp_min(sum(increase(pierhead_response_bytes_total{WHERE}[$__range]))'
     ' - sum(increase(pierhead_upstream_bytes_total{WHERE}[$__range])), 0)',
     unit="bytes", about="What clients got, less what came from upstreams, in the time shown.")
stat("Failed requests",
     '(sum(rate(pierhead_requests_total{WHERE, status=~"5.."}[$__rate_interval])) or vector(0))'
     ' / sum(rate(pierhead_requests_total{WHERE}[$__rate_interval]))',
     unit="percentunit", about="Answers with a 5xx status.", steps=((None, "green"), (0.01, "yellow"), (0.05, "red")))
stat("Rate limit left",
     'min(pierhead_upstream_ratelimit_remaining{WHERE} / (pierhead_upstream_ratelimit_limit{WHERE} > 0))',
     unit="percentunit", about="Of the upstream that is worst off, among those that tell.",
     steps=((None, "red"), (0.1, "yellow"), (0.3, "green")), defaults={"noValue": "not told"})

# --- clients -----------------------------------------------------------------------------------------------------------

row("Clients")
graph("Requests by cache word", [("{{cache}}", 'sum by (cache) (rate(pierhead_requests_total{WHERE}[$__rate_interval]))')],
      unit="reqps", stack=True,
      about="hit: held. revalidated: a tag confirmed by the upstream. collapsed: fetched once, for another request. "
            "stale: held, and the upstream could not confirm it. miss: fetched. bypass: not kept. none: no content.")
graph("Bytes to clients and from upstreams",
      [("to clients, {{cache}}", 'sum by (cache) (rate(pierhead_response_bytes_total{WHERE}[$__rate_interval]))'),
       ("from upstreams", 'sum(rate(pierhead_upstream_bytes_total{WHERE}[$__rate_interval]))')],
      unit="Bps", about="The line for the upstreams below the others is what the mirror is for.")
graph("Answers by status", [("{{status}}", 'sum by (status) (rate(pierhead_requests_total{WHERE}[$__rate_interval]))')],
      unit="reqps", stack=True)
graph("Time of a request by kind", quantiles("pierhead_request_seconds", "kind"), unit="s",
      about="To the last byte, so a blob's depends on its size and on the client's line.")
graph("Time of a manifest by cache word",
      quantiles("pierhead_request_seconds", "cache", where='WHERE, kind="manifest"'), unit="s",
      about="Small and the first thing of every pull: the cleanest measure of the mirror (hit) and of the upstreams (miss).")
graph("Connections of clients", [("{{instance}}", 'pierhead_connections{WHERE}')])

# --- upstreams ---------------------------------------------------------------------------------------------------------

row("Upstreams")
graph("Requests to upstreams", [("{{upstream}}", 'sum by (upstream) (rate(pierhead_upstream_requests_total{WHERE}[$__rate_interval]))')],
      unit="reqps", stack=True)
graph("Upstream answers", [("{{upstream}} {{status}}",
                            'sum by (upstream, status) (rate(pierhead_upstream_requests_total{WHERE}[$__rate_interval]))')],
      unit="reqps", about="error: no answer came at all.")
graph("Failed requests to upstreams",
      [("{{upstream}}",
        'sum by (upstream) (rate(pierhead_upstream_requests_total{WHERE, status=~"5..|429|error"}[$__rate_interval]))'
        ' / sum by (upstream) (rate(pierhead_upstream_requests_total{WHERE}[$__rate_interval]))'
        ' or sum by (upstream) (rate(pierhead_upstream_requests_total{WHERE}[$__rate_interval])) * 0')],
      unit="percentunit", about="5xx, 429 and broken connections.", defaults={"max": 1})
graph("Time to an upstream's answer", quantiles("pierhead_upstream_seconds", "upstream"), unit="s",
      about="To the head of the answer.")
graph("Bytes from upstreams", [("{{upstream}}", 'sum by (upstream) (rate(pierhead_upstream_bytes_total{WHERE}[$__rate_interval]))')],
      unit="Bps", stack=True)
graph("Rate limit left by upstream",
      [("{{upstream}} on {{instance}}", 'pierhead_upstream_ratelimit_remaining{WHERE}'),
       ("{{upstream}} on {{instance}}, of", 'pierhead_upstream_ratelimit_limit{WHERE}')],
      about="Only registries that tell, as Docker Hub does.", defaults={"noValue": "no upstream tells"})
panel("state-timeline", "Endpoints", [("{{upstream}} {{endpoint}} on {{instance}}", 'pierhead_upstream_up{WHERE}')],
      w=24, h=6, about="Whether an endpoint answered when it was last asked. Nobody asks an endpoint that nobody needs.",
      options={"mergeValues": True, "showValue": "never", "rowHeight": 0.8, "legend": {"showLegend": False}},
      defaults={"mappings": [{"type": "value", "options": {"0": {"text": "down", "color": "red"},
                                                           "1": {"text": "up", "color": "green"}}}]})

# --- what is kept ------------------------------------------------------------------------------------------------------

row("Cache")
graph("Disk", [("{{instance}}", 'pierhead_cache_bytes{WHERE}'), ("limit", 'max(pierhead_cache_limit_bytes{WHERE})')],
      unit="bytes", about="Bytes held, and the bound of cache.max_size.")
graph("Objects", [("{{instance}}", 'pierhead_cache_objects{WHERE}')])
graph("Content in memory", [("{{instance}}", 'pierhead_memory_bytes{WHERE}')], unit="bytes",
      about="Small and hot content, bounded by cache.memory.")
graph("Evicted objects", [("{{reason}}", 'sum by (reason) (rate(pierhead_evictions_total{WHERE}[$__rate_interval]))')],
      unit="ops", stack=True,
      about="size: the cache is at cache.max_size. free: less than cache.min_free of the file system is free. "
            "age: not used for too long. purged: by hand. rotten: damaged on disk.")
graph("Evicted bytes", [("{{instance}}", 'sum by (instance) (rate(pierhead_evicted_bytes_total{WHERE}[$__rate_interval]))')],
      unit="Bps")
graph("Downloads under way", [("downloads", 'sum(pierhead_fills_in_flight{WHERE})'),
                              ("requests that follow them", 'sum(pierhead_fill_waiters{WHERE})')],
      about="The distance between the lines is what coalescing saves.")
graph("Downloads by result", [("{{result}}", 'sum by (result) (rate(pierhead_fills_total{WHERE}[$__rate_interval]))')],
      unit="ops", stack=True)
graph("Damaged content", [("{{instance}}", 'increase(pierhead_verify_failures_total{WHERE}[$__rate_interval])')],
      about="Held content that did not have its digest any more; it was dropped, not served.")
graph("Decisions on access", [("{{result}}", 'sum by (result) (rate(pierhead_auth_decisions_total{WHERE}[$__rate_interval]))')],
      unit="ops", stack=True, defaults={"noValue": "everybody may come in"})

# --- the process -------------------------------------------------------------------------------------------------------

row("Process")
graph("CPU", [("{{instance}}", 'rate(process_cpu_seconds_total{WHERE}[$__rate_interval])')],
      about="In cores.")
graph("Memory", [("{{instance}}", 'process_resident_memory_bytes{WHERE}')], unit="bytes")
graph("File descriptors", [("{{instance}}", 'process_open_fds{WHERE}')])


def variable(name, query):
    return {
        "type": "query", "name": name, "label": name.capitalize(), "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": query, "query": {"query": query, "refId": name, "qryType": 1},
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard():
    for number, each in enumerate(panels, 1):
        each["id"] = number
    return {
        "uid": "pierhead",
        "title": "Pierhead",
        "description": "A pull-through caching mirror for container registries",
        "tags": ["pierhead", "registry"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Datasource", "query": "prometheus", "refresh": 1,
             "current": {}},
            variable("job", "label_values(pierhead_connections, job)"),
            variable("instance", 'label_values(pierhead_connections{job=~"$job"}, instance)'),
        ]},
        "annotations": {"list": [
            {"name": "Starts", "enable": True, "iconColor": "blue",
             "datasource": {"type": "prometheus", "uid": "${datasource}"},
             "expr": f"changes(process_start_time_seconds{{{WHERE}}}[$__rate_interval]) > 0".replace("WHERE", WHERE),
             "titleFormat": "started", "textFormat": "{{instance}}"},
        ]},
        "links": [{"title": "Runbooks", "type": "link", "icon": "doc", "targetBlank": True,
                   "url": "https://github.com/pierhead/pierhead/tree/main/docs/src/runbooks"}],
        "panels": panels,
    }


def queries(text):
    """(title, expression) of every query, with what Grafana would put into its variables."""
    values = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*"}
    for each in json.loads(text)["panels"]:
        for target in each.get("targets", ()):
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            yield each["title"] + "?" * (each["title"] in MAY_BE_EMPTY), expression


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="fail if the file is not what would be written")
    what.add_argument("--queries", action="store_true", help="print every query")
    arguments = parser.parse_args()
    text = json.dumps(dashboard(), indent=2) + "\n"
    if arguments.queries:
        for title, expression in queries(text):
            print(f"{title}\t{expression}")
    elif not arguments.check:
        OUT.write_text(text)
    elif OUT.read_text() != text:
        sys.exit(f"{OUT.name} is not what packaging/grafana/generate.py writes: run it")


if __name__ == "__main__":
    main()
