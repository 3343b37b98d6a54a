"""A figure as one `<svg>` element that can stand in a page with others, as short as it can be said.

matplotlib writes a style with every element and a group around it: of a page of twelve figures that
is two megabytes of three.
"""

from __future__ import annotations

import re

TAG = re.compile(r"<(/?)([a-zA-Z]+)([^>]*?)(/?)>")


def compact(svg: str, name: str) -> str:
    """Return the same picture: hundredths of a point, a class a style, no group without a meaning.

    name: what its ids start with; several figures share one page, and matplotlib numbers the ids of
          each from one
    """
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    ids = {old: f"{name}-{i}" for i, old in enumerate(sorted(used))}
    styles: dict[str, str] = {}
    closed: list[bool] = []

    def rewritten(tag: re.Match[str]) -> str:
        slash, element, attributes, empty = tag.groups()
        if element == "g" and slash:
            return "</g>" if closed.pop() else ""
        attributes = _attributes(attributes, ids, styles)
        if element == "g" and not empty:
            closed.append(bool(attributes.strip()))
            if not closed[-1]:
                return ""
        return f"<{slash}{element}{attributes}{empty}>"

    body = TAG.sub(rewritten, svg)
    rules = "".join(f"#{name} .{short}{{{style}}}" for style, short in styles.items())
    rules = f"<style>#{name} *{{stroke-linejoin:round;stroke-linecap:butt}}{rules}</style>"
    body = re.sub(r"<style[^>]*>.*?</style>", rules, body, count=1, flags=re.DOTALL)
    return re.sub(r"\n\s*", "\n", body).replace("<svg ", f'<svg id="{name}" ', 1)


def _attributes(text: str, ids: dict[str, str], styles: dict[str, str]) -> str:
    """Return the attributes of a tag, rewritten; each new style gets the next class."""
    text = re.sub(r"(\.\d\d)\d+", r"\1", " ".join(text.split()))
    text = re.sub(r' ?transform="rotate\(-0 [^"]*\)"| type="text/css"', "", text)
    text = re.sub(r' ?\bid="([^"]+)"', lambda m: f' id="{ids[m[1]]}"' if m[1] in ids else "", text)
    text = re.sub(r'href="#([^"]+)"', lambda m: f'href="#{ids[m[1]]}"', text)
    text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{ids[m[1]]})", text)

    def short(match: re.Match[str]) -> str:
        return f'class="{styles.setdefault(match[1], f"s{len(styles)}")}"'

    text = re.sub(r'\bstyle="([^"]*)"', short, text)
    text = re.sub(r'\bd="([^"]*)"', lambda m: f'd="{_path(m[1])}"', text)
    return f" {text.strip()}" if text.strip() else ""


def _path(commands: str) -> str:
    """Return a path without what separates nothing."""
    text = re.sub(r"\s*([A-Za-z])\s*", r"\1", commands)
    text = re.sub(r"\.(\d*?)0+(?=\D|$)", lambda m: f".{m[1]}" if m[1] else "", text)
    return re.sub(r"(?<=[\d.])L(?=[-\d.])", " ", text) if "C" not in text else text
