"""Checks the HTML of a report's page."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects ids, links and what the page would fetch; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "path", "rect", "circle", "use", "line", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.fetched: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.anchors.append(str(found["href"]))
        for name in ("src", "srcset", "data", "poster", "href", "xlink:href"):
            if found.get(name) and not str(found[name]).startswith(("#", "data:")):
                self.fetched.append(str(found[name]))
        if tag == "img" or (tag == "svg" and found.get("aria-hidden") != "true"):
            self.images.append(found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check_page(text: str) -> None:
    """Fails if the page is not well formed, fetches anything, or has a dead link or an image without a description."""
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.fetched == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert {anchor[1:] for anchor in page.anchors} <= set(page.ids)
    assert all(image.get("alt") or image.get("aria-label") for image in page.images)
