"""Pages as a browser lays them out.

Needs a Chromium on the PATH; `apt-get install chromium` brings one.
"""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NEEDED = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look with")
# a window is never narrower than 500 px, a frame is; pages follow each other in it, each says what
# it found by a message to its parent
FRAME = """
<body><iframe style="width: {width}px; height: 1900px; border: 0"></iframe><script>
const pages = {pages}, found = [], frame = document.querySelector('iframe');
addEventListener('message', (said) => {{
  found.push(said.data);
  if (found.length < pages.length) {{ frame.src = pages[found.length]; return; }}
  document.body.innerHTML = '<pre id="found"></pre>';
  document.getElementById('found').textContent = JSON.stringify(found);
}});
frame.src = pages[0];
</script></body>
"""


def chromium(*options, page):
    """Run Chromium on a file and return what it prints."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--virtual-time-budget=10000", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def said(pages, folder, width):
    """Return what each page of a folder, shown at a width, says to its parent."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, pages=json.dumps(pages)))
    dumped = chromium("--window-size=2000,2000", "--dump-dom", page=frame)
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)[1]))
