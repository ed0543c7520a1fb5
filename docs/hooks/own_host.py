"""Refuses a page that a reader's browser would load something for from another host."""

import re

from mkdocs.exceptions import PluginError

_LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+")


def on_post_page(output: str, page, config) -> str:
    found = _LOADED.findall(output)
    if found:
        raise PluginError(f"{page.file.src_path}: expected nothing from other hosts, got {', '.join(found)}")
    return output
