"""Tests of what is said about measurements: python3 benches/test.py"""

import re
import sys
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "compare")]
import chart
import instructions
from pushing import PUSHING
from rows import ROWS as READING
from servers import CONTENDERS

ROWS = [*READING, *PUSHING]
TITLES = {kind.name: kind.title for kind in CONTENDERS}

SVG = "{http://www.w3.org/2000/svg}"


def row(name, figures, more_is_better=True, unit="requests/s"):
    """A row as the comparison writes it, of the figures of each round."""
    results = {}
    for server, values in figures.items():
        middle = sorted(values)[len(values) // 2]
        results[server] = {"rounds": [{"value": value} for value in values], "median": {"value": middle}}
    return {"name": name, "title": name, "unit": unit, "more_is_better": more_is_better, "results": results}


def drawn(*rows, **more):
    about = {"date": "2026-11-21 06:00", "cpus": 2, "cpu": "A <fast> & small one", "kernel": "6.1", "rounds": 3, **more}
    text = chart.chart({"about": about, "rows": list(rows)}, TITLES)
    return ElementTree.fromstring(text)


def texts(picture):
    return ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]


def bars(picture, server):
    """Their lengths, without the square in the legend."""
    mine = [rect for rect in picture.iter(f"{SVG}rect") if rect.get("fill") == chart.COLOURS[server]]
    return [float(rect.get("width")) for rect in mine[1:]]


class Chart(unittest.TestCase):
    def test_a_ratio_is_the_median_of_the_rounds_own(self):
        figures = {"pierhead": [10, 40, 90], "nginx-cache": [10, 20, 30]}
        self.assertEqual(chart.ratios(row("x", figures)), {"pierhead": 2, "nginx-cache": 1})

    def test_longer_is_better_whatever_the_row_is_about(self):
        figures = {"pierhead": [1, 1, 1], "nginx-cache": [2, 2, 2]}
        self.assertEqual(chart.ratios(row("rate", figures))["pierhead"], 0.5)
        self.assertEqual(chart.ratios(row("time", figures, more_is_better=False))["pierhead"], 2)

    def test_bars_are_to_scale_and_labelled(self):
        picture = drawn(row("manifests", {"pierhead": [3000], "nginx-cache": [2000], "distribution": [500]}))
        (own,), (cache,), (other,) = (bars(picture, name) for name in ("pierhead", "nginx-cache", "distribution"))
        self.assertAlmostEqual(own / cache, 1.5, places=2)
        self.assertAlmostEqual(other / cache, 0.25, places=2)
        said = texts(picture)
        self.assertIn("manifests", said)
        self.assertIn("1.50 × 3,000 requests/s", said)
        self.assertIn(TITLES["nginx-cache"], said)

    def test_date_and_machine_are_told(self):
        said = " ".join(texts(drawn(row("x", {"pierhead": [1], "nginx-cache": [1]}))))
        self.assertIn("2026-11-21 06:00, 2 cores (A <fast> & small one)", said)

    def test_a_trial_is_not_taken_for_a_measurement(self):
        one = row("x", {"pierhead": [1], "nginx-cache": [1]})
        self.assertIn("measures nothing", texts(drawn(one, quick=True))[0])
        self.assertNotIn("measures nothing", texts(drawn(one, quick=False))[0])

    def test_a_bar_too_long_for_the_picture_is_cut_and_says_so(self):
        picture = drawn(row("x", {"pierhead": [500], "nginx-cache": [1]}))
        self.assertEqual(bars(picture, "pierhead"), [chart.FULL])
        self.assertIn("» 500.00 × 500 requests/s", texts(picture))

    def test_pushes_are_compared_with_distribution_and_what_failed_is_left_out(self):
        pushed = row("pushed", {"pierhead": [2], "distribution": [1]})
        failed = row("failed", {"nginx-cache": [1]})
        picture = drawn(pushed, failed, row("alone", {"pierhead": [1]}))
        self.assertIn("pushed", texts(picture))
        self.assertFalse({"failed", "alone"} & set(texts(picture)))

    def test_everything_lies_within_the_picture(self):
        figures = {name: [1 + place] for place, name in enumerate(chart.COLOURS)}
        picture = drawn(*(row(f"row {n}", figures) for n in range(25)))
        height = float(picture.get("height"))
        for rect in picture.iter(f"{SVG}rect"):
            self.assertLessEqual(float(rect.get("x")) + float(rect.get("width")), chart.WIDTH)
            self.assertLessEqual(float(rect.get("y")) + float(rect.get("height")), height)

    def test_it_has_colours_for_a_dark_page(self):
        style = drawn(row("x", {"pierhead": [1], "nginx-cache": [1]})).find(f"{SVG}style").text
        self.assertRegex(style, r"prefers-color-scheme: dark")


class Rows(unittest.TestCase):
    def test_every_row_stands_in_the_readme(self):
        readme = (HERE / "README.md").read_text()
        named = set(re.findall(r"`([a-z0-9-]+)`", readme))
        self.assertEqual([each.name for each in ROWS if each.name not in named], [])

    def test_names_are_each_used_once(self):
        names = [each.name for each in ROWS]
        self.assertEqual(len(names), len(set(names)))


class Instructions(unittest.TestCase):
    def test_only_what_passes_its_bound_is_complained_of(self):
        name = "blob"
        most = instructions.MOST[name]
        self.assertEqual(list(instructions.complaints({name: most})), [])
        (said,) = instructions.complaints({name: most + 1})
        self.assertIn(f"{most + 1:,} instructions, at most {most:,}; if this is meant, raise it in", said)

    def test_a_count_of_nothing_is_no_success(self):
        (said,) = instructions.complaints({"blob": 0})
        self.assertIn("nothing was counted", said)


if __name__ == "__main__":
    unittest.main()
