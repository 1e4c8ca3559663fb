"""
What MkDocs does to a page beside its own: links out of docs/ lead to the repository, and lists begin as on GitHub.

The pages are read on GitHub, too, so their sources keep relative links. Python's Markdown wants an empty line before a
list, GitHub does not; GitHub wants `\\|` in the code of a table, Python's Markdown shows the backslash.
"""

import logging
import posixpath
import re
from pathlib import Path

logger = logging.getLogger("mkdocs.hooks.pages")  # what MkDocs counts with --strict

_FENCE = re.compile(r"^(```.*?^```\s*?$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)\s#]+)((?:#[^)\s]*)?\))")
_PIPE = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
_LIST = re.compile(r"^(?![-*] |\d+\. |\|| |\s*$)(.+)\n(?=[-*] |1\. )", re.MULTILINE)


def on_page_markdown(markdown: str, page, config, files) -> str:
    """MkDocs' event: the page's Markdown before it is rendered."""
    docs, root = Path(config.docs_dir), Path(config.config_file_path).parent

    def replace(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[2]))
        if not target.startswith(".."):
            return link[0]  # MkDocs checks those inside
        path = (docs / target).resolve()
        if not path.exists():
            logger.warning("%s links to %s, which does not exist.", page.file.src_uri, link[2])
        elif link[3] != ")" and link[3][1:-1] not in anchors(path):
            logger.warning("%s links to %s%s, which is no heading there.", page.file.src_uri, link[2], link[3][:-1])
        where = "tree" if path.is_dir() else "blob"
        return f"{link[1]}{config.extra['repository']}/{where}/main/{path.relative_to(root)}{link[3]}"

    parts = _FENCE.split(markdown)  # code and what is between
    parts[::2] = [_PIPE.sub(lambda code: code[0].replace("\\|", "|"), text) for text in parts[::2]]
    parts[::2] = [_LIST.sub(r"\1\n\n", _LINK.sub(replace, text)) for text in parts[::2]]
    return "".join(parts)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
