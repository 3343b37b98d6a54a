"""What was measured, as one HTML file, Markdown, JSON and figures. Data only: no CUDA."""

from ferrum_numba.report.data import Group, groups
from ferrum_numba.report.document import Document, document
from ferrum_numba.report.goals import reached
from ferrum_numba.report.inputs import checked_results
from ferrum_numba.report.sources import Asked, Sources
from ferrum_numba.report.writer import Writer, write

__all__ = [
    "Asked", "Document", "Group", "Sources", "Writer", "checked_results", "document", "groups",
    "reached", "write",
]  # fmt: skip
