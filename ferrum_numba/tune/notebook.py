"""How far a search is, in a notebook's cell: `tune(…, progress=NotebookBar("w4a16_gemm"))`."""

from __future__ import annotations

import importlib
import sys
import time
from html import escape
from typing import Any

# a browser that is sent more than this shows none of it
EVERY_S = 0.2


class NotebookBar:
    """A bar that is called as every `progress` is, and redraws itself where it was first shown.

    Without IPython it is shown by nobody, and knows how far things are all the same.
    """

    def __init__(self, title: str) -> None:
        self.title, self.done, self.total, self.text = title, 0, 0, ""
        self._handle: Any = None
        self._drawn = -EVERY_S

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Show what is done, how much there is in all, and what is being done."""
        self.done, self.total, self.text = done, total, text
        now = time.monotonic()
        if now - self._drawn < EVERY_S and done < total:
            return
        self._drawn = now
        if self._handle is not None:
            self._handle.update(self)
        elif "IPython" in sys.modules:
            self._handle = importlib.import_module("IPython.display").display(self, display_id=True)

    def __repr__(self) -> str:
        return " ".join(filter(None, (f"{self.done} of {self.total}", self.title, self.text)))

    def _repr_html_(self) -> str:
        words = " ".join(filter(None, (escape(self.title), escape(self.text))))
        # a bar without a value is one of which nobody knows how far it is
        value = f' value="{self.done}" max="{self.total}"' if self.total else ""
        return f"<div><progress{value}></progress> {self.done} of {self.total} {words}</div>"
