"""`<a id="bound"></a>` in a page: a target of links, on the site as on a code host."""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ANCHOR = re.compile(r'<a id="([^"]+)">')


class Anchors(SphinxTransform):
    """Make targets of the anchors, which MyST takes for HTML that it need not know.

    That of a heading becomes the section's own id, which the contents of the page lead to.
    """

    # before ids are sorted and links within the page are resolved
    default_priority = 200

    def apply(self) -> None:
        """Replace the anchors, and note them where MyST looks for places in other pages."""
        places = getattr(self.document, "myst_slugs", {})
        for node in list(self.document.findall(nodes.raw)):
            found = ANCHOR.fullmatch(node.astext())
            if found is None:
                continue
            name = found[1]
            end = node.next_node(nodes.raw, descend=False, siblings=True)
            if end is not None and end.astext() == "</a>":
                end.parent.remove(end)
            title = node.parent if isinstance(node.parent, nodes.title) else None
            if title is not None:
                node.parent.remove(node)
                place = title.parent
                place["ids"] = [name, *(one for one in place["ids"] if one != name)]
            else:
                place = nodes.target(ids=[name])
                node.replace_self(place)
            self.document.ids[name] = place
            places[name] = (node.line or 0, name, title.astext() if title else "")
        self.document.myst_slugs = places
        # what other pages' links are resolved by
        self.env.metadata[self.env.docname]["myst_slugs"] = places


def setup(app: Sphinx) -> None:
    """Register the transform."""
    app.add_transform(Anchors)
