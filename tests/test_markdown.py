"""Markdown of reports in a renderer: tables, links and text arrive as written."""

from itertools import pairwise

import pytest
from test_reports import EVIL, KINDS, PAIRS, VERDICTS, WIDTH, by_kind, make

from ddpm_lab.reports import formats

markdown_it = pytest.importorskip("markdown_it", reason="an extra, for the documentation")


def test_renderer_shows_every_cell_and_no_markup(tmp_path):
    parser = markdown_it.MarkdownIt("gfm-like", {"linkify": False})
    tokens = parser.parse(formats.markdown(make(tmp_path), "1.2.3"))
    kinds = [token.type for token in tokens]
    texts, cells = [], [[]]
    for opening, token in pairwise(tokens):
        if opening.type == "tr_open":
            cells.append([])
        if token.type != "inline":
            continue
        types = {child.type for child in token.children}
        assert types <= {"text", "text_special", "image", "softbreak"}, token.content
        text = "".join(child.content for child in token.children)
        (cells[-1] if opening.type in ("td_open", "th_open") else texts).append(text)
    assert kinds.count("table_open") == 1 and kinds.count("code_block") == 1
    assert kinds.count("list_item_open") == len(VERDICTS)
    head, *rows = cells[1:]
    assert len(head) == 1 + 2 * WIDTH and len(rows) == len(KINDS) // WIDTH
    assert by_kind(row[1:] for row in rows) == PAIRS
    for text in (f"Not available: why {EVIL}", f"Runs: provenance {EVIL}", f"† note {EVIL}"):
        assert text in texts
    images = [child for token in tokens for child in token.children or () if child.type == "image"]
    assert [image.attrs["src"] for image in images] == ["t1-tiny-1.png", "t1-tiny-2.png"]
