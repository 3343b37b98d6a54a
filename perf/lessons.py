"""What was measured, as data, and how pages and sources point to it.

    perf/measurements/<topic>.json   {"schema": 1, "measurements": [{...}, ...]}

A measurement is what one run told, in words and as values. A page names it `[m:<id>]`; a source
names the finding it rests on by file and anchor, as in `docs/designs/prefill.md#bound`. An anchor
is `<a id="bound"></a>` in the page. tests/test_lessons.py follows every pointer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

from ferrum_numba.errors import StoreError

SCHEMA = 1
MEASUREMENTS = Path(__file__).parent / "measurements"
ID = re.compile(r"[a-z_]+(-[a-z0-9]+)+")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
NUMBER = re.compile(r"(?<![\d.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
# in a page: [m:prefill-stage-counters]
NAMED = re.compile(r"\[m:([^\]]+)\]")
# in a source: docs/designs/prefill.md#bound
POINTER = re.compile(r"\b(docs/[\w/.-]*\.md)(?:#([\w-]+))?")
ANCHOR = re.compile(r'<a id="([^"]+)"></a>')


@dataclass(frozen=True)
class Value:
    """One number: of what, and in what unit; 1 is a ratio."""

    what: str
    value: float
    unit: str


@dataclass(frozen=True)
class Measurement:
    """What one run told.

    row:      its place in the table of all, which `above` and `below` in texts refer to
    gpu:      its name; None where no GPU was needed
    where:    the same in the words of the record: which board, driver, commit
    driver:   None where the record does not say
    commits:  of the source that ran; None where the record does not say
    command:  what repeats it, or that nothing does: a spike, an earlier version
    kernels:  whose times they are
    problem:  K×N and M; None where it is of no problem
    measured: what, in a line
    text:     the record; every value is a number of it
    """

    id: str
    row: int
    date: str
    gpu: str | None
    where: str
    driver: str | None
    commits: tuple[str, ...] | None
    command: str
    kernels: tuple[str, ...]
    problem: str | None
    measured: str
    values: tuple[Value, ...]
    text: str


def load(folder: Path = MEASUREMENTS) -> list[Measurement]:
    """Return the measurements of all files of a folder, in the order of their rows.

    Raises:
        StoreError: names the file, the measurement and what is wrong with it.
    """
    found = [m for path in sorted(folder.glob("*.json")) for m in _read(path)]
    for name in ("id", "row"):
        twice = _repeated(getattr(m, name) for m in found)
        if twice:
            raise StoreError(f"{folder}: {name} stands twice: {', '.join(map(str, twice))}")
    return sorted(found, key=lambda m: m.row)


def _read(path: Path) -> list[Measurement]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: is not JSON: {error}") from error
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        raise StoreError(f"{path}: needs schema {SCHEMA}")
    found = []
    for i, item in enumerate(stored.get("measurements", [])):
        wrong = _form_error(item) or _content_error(item, path.stem)
        if wrong:
            name = item.get("id", i) if isinstance(item, dict) else i
            raise StoreError(f"{path}: measurement {name}: {wrong}")
        found.append(_measurement(item))
    return found


def _form_error(item: Any) -> str | None:
    """Return what keeps an item from having the fields of a measurement, each of its type."""
    names = {field.name for field in fields(Measurement)}
    if not isinstance(item, dict) or set(item) != names:
        got = sorted(set(item) ^ names) if isinstance(item, dict) else type(item).__name__
        return f"needs the fields {', '.join(sorted(names))}; differs in {got}"
    texts = ("id", "date", "where", "command", "measured", "text")
    wrong = [name for name in texts if not isinstance(item[name], str)]
    wrong += [n for n in ("gpu", "driver", "problem") if not isinstance(item[n], str | None)]
    wrong += [n for n in ("kernels", "values") if not isinstance(item[n], list)]
    if not isinstance(item["commits"], list | None):
        wrong.append("commits")
    if type(item["row"]) is not int:
        wrong.append("row")
    if wrong:
        return f"{', '.join(wrong)}: of the wrong type"
    if not all(isinstance(v, dict) and set(v) == {"what", "value", "unit"} for v in item["values"]):
        return "a value has what, value and unit"
    return None


def _content_error(item: Mapping[str, Any], topic: str) -> str | None:
    """Return what is wrong with what the fields say."""
    if not ID.fullmatch(item["id"]) or item["id"].split("-")[0] != topic:
        return f"an id is {topic}-<words>, of lower-case letters, digits and hyphens"
    try:
        date.fromisoformat(item["date"])
    except ValueError:
        return f"date must be as 2026-11-29; got {item['date']!r}"
    if not all(COMMIT.fullmatch(commit) for commit in item["commits"] or ()):
        return f"commits must be hexadecimal; got {item['commits']}"
    twice = _repeated((v["what"], v["unit"]) for v in item["values"])
    if twice:
        return f"a value stands twice: {twice[0]}"
    told = numbers(item["text"])
    for value in item["values"]:
        if isinstance(value["value"], bool) or value["value"] not in told:
            return f"{value['what']}: {value['value']} is no number of its text"
    return None


def _measurement(item: Mapping[str, Any]) -> Measurement:
    lists = {
        "kernels": tuple(item["kernels"]),
        "commits": None if item["commits"] is None else tuple(item["commits"]),
        "values": tuple(Value(**value) for value in item["values"]),
    }
    return Measurement(**{**item, **lists})


def _repeated(items: Iterable[Any]) -> list[Any]:
    return [item for item, times in Counter(items).items() if times > 1]


def numbers(text: str) -> set[float]:
    """Return the numbers of a text, `1,200` as 1200."""
    return {float(found.replace(",", "").rstrip(".")) for found in NUMBER.findall(text)}


def named(text: str) -> set[str]:
    """Return the ids of the measurements that a page names; `[m:…]` tells of the form."""
    return {i.strip() for group in NAMED.findall(text) if group != "…" for i in group.split(",")}


def anchors(page: str) -> list[str]:
    """Return the anchors of a page, in their order."""
    return ANCHOR.findall(page)


def pointers(source: str) -> list[tuple[str, str]]:
    """Return (page, anchor) of each pointer in a source; anchor is empty where it has none."""
    return POINTER.findall(source)
