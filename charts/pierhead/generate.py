#!/usr/bin/env python3
"""Writes README.md from README.md.in and the comments of values.yaml.

    generate.py            writes it
    generate.py --check    fails if the file is not what would be written

A comment that begins with `# --` documents the key below it; its further lines go on with plain `#`. A key whose value is a
map is documented either as a whole, by a comment of its own, or key by key. Nothing may be left out.
"""

import argparse
import json
import pathlib
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent


def comment_above(lines, number):
    """The `# --` comment that ends right above a line, as one text; None where there is none."""
    block = []
    while number > 0 and lines[number - 1].lstrip().startswith("#"):
        number -= 1
        block.insert(0, lines[number].strip().removeprefix("#").strip())
        if block[0].startswith("--"):
            return " ".join(block).removeprefix("--").strip()
    return None


def rows(node, lines, path=()):
    """(path, default, text) of every documented key, in the order of the file."""
    for key, value in node.value:
        here = (*path, key.value)
        text = comment_above(lines, key.start_mark.line)
        if text:
            default = yaml.safe_load(yaml.serialize(value))
            yield ".".join(here), default, text
        elif isinstance(value, yaml.MappingNode) and value.value:
            yield from rows(value, lines, here)
        else:
            sys.exit(f"values.yaml:{key.start_mark.line + 1}: {'.'.join(here)} has no `# --` comment")


def table():
    source = (HERE / "values.yaml").read_text()
    lines = source.splitlines()
    out = ["| Value | Default | What it does |", "| --- | --- | --- |"]
    for path, default, text in rows(yaml.compose(source), lines):
        shown = json.dumps(default, ensure_ascii=False)
        out.append(f"| `{path}` | `{shown}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if the file is not what would be written")
    text = (HERE / "README.md.in").read_text().replace("@VALUES@", table())
    out = HERE / "README.md"
    if not parser.parse_args().check:
        out.write_text(text)
    elif not out.exists() or out.read_text() != text:
        sys.exit("charts/pierhead/README.md is not what charts/pierhead/generate.py writes: run it")


if __name__ == "__main__":
    main()
