"""Check the built pages: nothing is loaded from elsewhere, no line of code is cut off, no page is too long.

python docs/check_pages.py docs/_build/html
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

COLUMNS = 100  # that fit at a width of 1000 pixels
SMALL = 120  # that fit in a small font
WORDS = 2200
LONG = {'design.html', 'genindex.html'}  # for those who change the library


class Page(HTMLParser):
    """The words of a page, its lines of code, and what it loads from elsewhere."""

    def __init__(self, text: str):
        super().__init__()
        self.words, self.code, self.loaded = 0, '', list[str]()
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        source = given.get('src') or (given.get('href') if tag == 'link' else None) or ''
        if source.startswith(('http:', 'https:', '//')) and given.get('rel') != 'canonical':
            self.loaded.append(source)
        if tag in ('pre', 'article', 'script', 'style'):
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            self.inside.remove(tag)
        if tag == 'pre':
            self.code += '\n'

    def handle_data(self, data: str) -> None:
        if 'script' in self.inside or 'style' in self.inside:
            return
        if 'pre' in self.inside:
            self.code += data
        if 'article' in self.inside:
            self.words += len(data.split())


def problems(folder: Path) -> Iterator[str]:
    """Return what is wrong with the pages of a folder."""
    for path in sorted(folder.rglob('*.html')):
        page, name = Page(path.read_text()), str(path.relative_to(folder))
        yield from (f'{name} loads {source}' for source in page.loaded)
        yield from (
            f'{name} has a line of {len(x)} columns: {x}'
            for x in page.code.split('\n')
            if len(x) > (SMALL if name in LONG else COLUMNS)
        )
        if page.words > WORDS and name not in LONG:
            yield f'{name} has {page.words} words. Must be at most {WORDS}.'


def main() -> None:
    folder = Path(sys.argv[1])
    if not any(folder.rglob('*.html')):
        raise SystemExit(f'There are no pages in {folder}.')
    found = list(problems(folder))
    print('\n'.join(found))
    raise SystemExit(bool(found))


if __name__ == '__main__':
    main()
