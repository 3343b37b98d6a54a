"""How Sphinx makes the site, which `make site` writes to build/site.

The source folder is the root of the tree, so that the site lies as the tree does and a page's
relative links hold on it as they are.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
# how wide argparse writes how a command is called
os.environ["COLUMNS"] = "80"

import ferrum_numba  # noqa: E402

project = "ferrum-numba"
release = version = ferrum_numba.__version__
root_doc = "README"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [
    *(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"),
    "docs/generator", "**/.ipynb_checkpoints",
]  # fmt: skip

extensions = ["myst_nb", "sphinx.ext.autodoc", "generator"]
# tests run the notebook; the site shows what it has
nb_execution_mode = "off"
# places as a code host names them, beside the pages' own anchors
myst_heading_anchors = 3
# pages say which blocks are code, and of which language; dashes and quotes stay as typed
highlight_language = "none"
smartquotes = False

nitpicky = True
# types in signatures that have no page here; errors, functions and modules that are named have one
nitpick_ignore_regex = [("py:(class|obj|data)", ".*"), ("py:exc", r"(?!ferrum_numba\.).*")]
add_module_names = False
autodoc_mock_imports = ["torch", "transformers"]
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = project
html_static_path = ["generator/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# of links to other sites: those in the tree are checked whenever the site is made
linkcheck_ignore = [r"(?!https?:)"]
linkcheck_timeout = 20
