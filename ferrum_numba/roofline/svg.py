"""A figure as one `<svg>` element that can stand in a page with others, as short as it can be said.

matplotlib writes a style with every element and a group around it, and each line of a grid as one
that is clipped: of a page of twelve figures that is two megabytes of three.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

TAG = re.compile(r"<(/?)([a-zA-Z]+)([^>]*?)(/?)>")
NUMBER = re.compile(r"-?\d+\.\d+")
# coordinates beyond have a tenth of a point, an eighth of a pixel of the page; marks are smaller
LARGE = 10.0
PATH = re.compile(r'<path d="([^"]*)"( class="([^"]*)")?/>')
USE = re.compile(r'<use href="#([^"]+)" x="([^"]+)" y="([^"]+)" class="([^"]+)"/>')
FAMILY = re.compile(r"font-family:[^;]*;?")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def compact(svg: str, name: str) -> str:
    """Return the same picture: a class a style, a path a group of lines, short ids and numbers.

    name: of the picture, of whose digest its ids and classes are: several figures share one page,
          and matplotlib numbers the ids of each from one
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = sorted(set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)))
    families = set(re.findall(r"font-family: ([^;\"]+)", svg))
    key = short_name(name)
    short = _Short({old: f"{key}{_base36(i)}" for i, old in enumerate(used)}, len(families) == 1)
    body = TAG.sub(short.rewritten, svg)
    usual = "stroke-linejoin:round;stroke-linecap:butt"
    usual += f";font-family:{families.pop()}" if short.one_family else ""
    rules = "".join(f".{key} .{one}{{{style}}}" for style, one in short.classes.items())
    body = re.sub(
        r"<style[^>]*>.*?</style>", lambda _: f"<style>.{key}{{{usual}}}{rules}</style>", body,
        count=1, flags=re.DOTALL,
    )  # fmt: skip
    lines = [line for line in map(str.strip, body.splitlines()) if line]
    text = "\n".join(_grouped(_joined(lines, short.merged())))
    return text.replace("<svg ", f'<svg id="{name}" class="{key}" ', 1)


def short_name(name: str) -> str:
    """Return an id or class for what has a long name; of another name another one."""
    return f"k{_base36(zlib.crc32(name.encode()))}"


def _base36(number: int) -> str:
    high, low = divmod(number, len(DIGITS))
    return (_base36(high) if high else "") + DIGITS[low]


@dataclass
class _Short:
    """What is short for what.

    ids:        new ones by old ones
    one_family: of fonts, which the whole picture has
    classes:    by style
    """

    ids: dict[str, str]
    one_family: bool
    classes: dict[str, str] = field(default_factory=dict)
    _closed: list[bool] = field(default_factory=list)

    def rewritten(self, tag: re.Match[str]) -> str:
        """Return a tag with what is short; a group without a meaning is left out."""
        slash, element, attributes, empty = tag.groups()
        if element == "g" and slash:
            return "</g>" if self._closed.pop() else ""
        attributes = self._attributes(attributes)
        if element == "g" and not empty:
            self._closed.append(bool(attributes))
            if not self._closed[-1]:
                return ""
        return f"<{slash}{element}{attributes}{empty}>"

    def merged(self) -> frozenset[str]:
        """Return the classes of lines of which several may be one path."""
        return frozenset(
            name
            for style, name in self.classes.items()
            if "fill:none" in style and "stroke:" in style and "dasharray" not in style
        )

    def _attributes(self, text: str) -> str:
        ids = self.ids
        text = NUMBER.sub(_number, " ".join(text.split()))
        text = re.sub(r' ?transform="rotate\(-?0 [^"]*\)"| type="text/css"', "", text)
        text = re.sub(
            r' ?\bid="([^"]+)"', lambda m: f' id="{ids[m[1]]}"' if m[1] in ids else "", text
        )
        text = re.sub(r'xlink:href="#([^"]+)"', lambda m: f'href="#{ids[m[1]]}"', text)
        text = re.sub(r'\bxmlns:xlink="[^"]*" ?', "", text)
        text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{ids[m[1]]})", text)
        styles = re.findall(r'\bstyle="([^"]*)"', text)
        styles += [f"clip-path:{clip}" for clip in re.findall(r'\bclip-path="([^"]*)"', text)]
        text = re.sub(r' ?\b(style|clip-path)="[^"]*"', "", text)
        names = list(filter(None, map(self._class, styles)))
        text += f' class="{" ".join(names)}"' if names else ""
        text = re.sub(r'\bd="([^"]*)"', lambda m: f'd="{_path(m[1])}"', text)
        return f" {text.strip()}" if text.strip() else ""

    def _class(self, style: str) -> str:
        """Return the class of a style, none where it says nothing."""
        if self.one_family:
            style = FAMILY.sub("", style)
        style = re.sub(r"\s*([:;,])\s*", r"\1", style).strip("; ")
        return self.classes.setdefault(style, f"s{_base36(len(self.classes))}") if style else ""


def _number(match: re.Match[str]) -> str:
    value = float(match[0])
    text = f"{value:.{1 if abs(value) >= LARGE else 2}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _path(commands: str) -> str:
    """Return a path without what separates nothing; a line along an axis has one coordinate."""
    text = re.sub(r"\s*([A-Za-z])\s*", r"\1", commands).strip()
    if "C" in text:
        return text
    straight = re.fullmatch(r"M(\S+) (\S+)[L ](\S+) (\S+)", text)
    if straight:
        x0, y0, x1, y1 = straight.groups()
        if x0 == x1 or y0 == y1:
            return f"M{x0} {y0}" + (f"V{y1}" if x0 == x1 else f"H{x1}")
    return re.sub(r"(?<=[\d.])L(?=[-\d.])", " ", text)


def _joined(lines: Iterable[str], merged: frozenset[str]) -> list[str]:
    """Return the lines, neighbours as one: groups of one kind, and paths of a merged class."""
    found: list[str] = []
    opened = ""
    for line in lines:
        path, before = PATH.fullmatch(line), PATH.fullmatch(found[-1]) if found else None
        if path and before and path[3] == before[3] and merged & set((path[3] or "").split()):
            found[-1] = f'<path d="{before[1]}{path[1]}"{path[2]}/>'
        elif line.startswith("<g ") and line == opened and found[-1] == "</g>":
            found.pop()
        else:
            found.append(line)
            opened = line if line.startswith("<g ") else opened
    return found


def _grouped(lines: list[str]) -> list[str]:
    """Return the lines, what all marks of a group have in common said by the group."""
    found = list(lines)
    for start, line in enumerate(lines):
        if not re.fullmatch(r'<g class="[^"]+">', line):
            continue
        end = lines.index("</g>", start)
        marks = [USE.fullmatch(one) for one in lines[start + 1 : end]]
        classes = {mark[4] if mark else "" for mark in marks}
        if len(marks) > 1 and len(classes) == 1 and "" not in classes:
            found[start] = f'{line[:-2]} {classes.pop()}">'
            for place, mark in enumerate(marks, start + 1):
                assert mark is not None, "it has a class"
                found[place] = f'<use href="#{mark[1]}" x="{mark[2]}" y="{mark[3]}"/>'
    return found
