"""What the site needs besides Sphinx, MyST and its theme: an extension of a few files.

anchors:      `<a id="...">` of a page is a place that links lead to
contents:     the navigation, appended to the README, which is the front page
docstrings:   the house's docstrings as reStructuredText
commands:     `.. commands::`, all commands from their parsers
instructions: `.. instructions::`, the PTX instructions of a module
tree:         files that pages link to lie on the site where they lie in the tree
"""

from typing import Any

from sphinx.application import Sphinx

from generator import anchors, commands, contents, docstrings, instructions, tree


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all parts."""
    for part in (anchors, commands, contents, docstrings, instructions, tree):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
