"""
Hooks of mkdocs: what the site needs beside the pages of docs/, which are written to be read in the repository as well.

Pages of the repository's root become pages of the site. Links to files that are no page, such as modules, become text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "vulnerabilities.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?([^<]*)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root."""
    for name, uri in PAGES.items():
        text = ROOT.joinpath(name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to where their targets are in the site."""
    root_page = {uri: name for name, uri in PAGES.items()}.get(page.file.src_uri)
    folder = posixpath.dirname(root_page or f"docs/{page.file.src_uri}")  # as links in the repository count

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if ":" in target:  # of another host
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        uri = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(uri) is None:
            return text
        return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return LINK.sub(lead, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Show names that docstrings refer to by roles."""
    return ROLE.sub(lambda match: f"<code>{match[1].rpartition('.')[2]}</code>", html)
