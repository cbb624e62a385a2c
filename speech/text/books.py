"""Books into paragraphs: plain text, Markdown and EPUB, with their chapters.

    book = read_book(Path("novel.epub"))
    for paragraph in book.paragraphs(): ...             # the first of a chapter carries its title

A chapter is read when it is asked for. Markdown: headings of the first two levels begin chapters; code, tables and
pictures are left out and counted. Text: a line of its own such as "Chapter 3" or "PART TWO" begins one.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from longtake.errors import UserError, shorten
from longtake.reading import read_text
from longtake.speech.text.segments import Paragraph, inline, paragraphs
from longtake.speech.text.ssml import parse

SUFFIXES = (".txt", ".md", ".markdown", ".epub", ".ssml", ".xml")
MOST_BYTES = 64 * 2**20  # of one part of a book
_HEADING = re.compile(
    r"\s*((?:chapter|part|book|act|section)\s+(?:\d+|[ivxlc]+|[a-z]+(?:[ -][a-z]+)?)|prologue|epilogue|preface)"
    r"\s*[.:]?(?:\s*[-—:.]\s*.{1,60})?\s*",
    re.I,
)


@dataclass(frozen=True)
class Chapter:
    """A chapter and how its paragraphs are had. title: None for what stands before the first one."""

    title: str | None
    read: Callable[[], Iterator[Paragraph]]


@dataclass
class Book:
    """A text to be read. notes: what was left out, told once; they grow while it is read."""

    title: str | None
    chapters: list[Chapter]
    notes: list[str] = field(default_factory=list)

    def paragraphs(self) -> Iterator[Paragraph]:
        """Every paragraph; the first of a chapter carries its title, the last one ends it."""
        for chapter in self.chapters:
            title, held = chapter.title, None
            for paragraph in chapter.read():
                if held is not None:
                    yield held
                held = replace(paragraph, title=title)
                title = None
            if held is not None:
                yield replace(held, end="chapter")


def read_book(path: Path) -> Book:
    """The book in a file; its suffix says of what kind. Raises UserError when it is missing, damaged or of no kind."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is no text to read: a text is one of {', '.join(SUFFIXES)}")
    if suffix == ".epub":
        return _epub(path)
    text = read_text(path)
    if suffix in (".ssml", ".xml"):
        found, notes = parse(text)
        return Book(None, [Chapter(None, lambda: iter(found))], notes)
    if suffix in (".md", ".markdown"):
        return _markdown(text)
    return _plain(text)


# ------------------------------------------------------------------------------------------------------ plain text


def _plain(text: str) -> Book:
    stretches: list[tuple[str | None, list[str]]] = [(None, [])]
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\f", "\n\n")):
        line = block.strip()
        if "\n" not in line and len(line) <= 80 and _HEADING.fullmatch(line):
            stretches.append((line, []))
        stretches[-1][1].append(block)
    chapters = [
        Chapter(title, lambda blocks=blocks: paragraphs("\n\n".join(blocks)))  # type: ignore[misc]
        for title, blocks in stretches
        if any(block.strip() for block in blocks)
    ]
    return Book(None, chapters)


# -------------------------------------------------------------------------------------------------------- Markdown


def _markdown(text: str) -> Book:
    """Chapters of Markdown; what is no prose is left out."""
    lost: dict[str, int] = {}
    text = re.sub(r"\A---\n.*?\n---\n", "", text.replace("\r\n", "\n"), flags=re.S)

    def drop(kind: str) -> Callable[[re.Match[str]], str]:
        def dropped(_: re.Match[str]) -> str:
            lost[kind] = lost.get(kind, 0) + 1
            return "\n\n"

        return dropped

    text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", drop("code blocks"), text, flags=re.S | re.M)
    text = re.sub(r"(?:^ {0,3}\|.*\n?)+", drop("tables"), text, flags=re.M)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", drop("pictures"), text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    stretches: list[tuple[str | None, list[str]]] = [(None, [])]
    text = re.sub(r"^(.+)\n(=+|-{3,})\s*$", lambda m: f"{'#' if m[2][0] == '=' else '##'} {m[1]}", text, flags=re.M)
    for line in text.split("\n"):
        heading = re.fullmatch(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*", line)
        if heading:
            title = _inline_markdown(heading[2])
            if len(heading[1]) <= 2:
                stretches.append((title, []))
            ended = title if title[-1:] in ".!?:" else f"{title}."
            stretches[-1][1].append(f"\n{ended}\n")
        elif re.fullmatch(r"\s*([-*_]\s*){3,}", line):
            stretches[-1][1].append("")
        else:
            item = re.sub(r"^\s*(?:[-*+]|\d+[.)])\s+(?:\[[ xX]\]\s+)?", "\n", re.sub(r"^(?:\s*>)+\s?", "", line))
            stretches[-1][1].append(_inline_markdown(item))
    chapters = [
        Chapter(title, lambda lines=lines: paragraphs("\n".join(lines)))  # type: ignore[misc]
        for title, lines in stretches
        if any(line.strip() for line in lines)
    ]
    return Book(next((title for title, _ in stretches if title), None), chapters, _told(lost))


def _inline_markdown(text: str) -> str:
    text = re.sub(r"\[([^\]\[]+)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?<!\[)\[([^\]\[]+)\]\[[^\]]*\]", r"\1", text)
    text = re.sub(r"<(https?://[^>]+)>", r"\1", text)
    text = re.sub(r"</?[a-zA-Z][^>]*>", "", text)
    text = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
    text = re.sub(r"(?<![\w*])([*_])(?=\S)(.+?)(?<=\S)\1(?![\w*])", r"\2", text)
    return re.sub(r"~~(.+?)~~", r"\1", re.sub(r"`([^`]*)`", r"\1", text))


def _told(lost: dict[str, int]) -> list[str]:
    return [f"left out {count} {kind}" for kind, count in sorted(lost.items())]


# ------------------------------------------------------------------------------------------------------------ EPUB


def _epub(path: Path) -> Book:
    try:
        with zipfile.ZipFile(path) as book:
            names = set(book.namelist())
            if "META-INF/encryption.xml" in names and b"EncryptedData" in _part(book, "META-INF/encryption.xml"):
                fonts = b"obfuscation" in _part(book, "META-INF/encryption.xml")
                if not fonts:
                    raise UserError(f"{path} is locked (DRM) and cannot be read: use a copy without a lock")
            package = _first(_tree(book, "META-INF/container.xml"), "rootfile").get("full-path", "")
            tree = _tree(book, package)
            folder = posixpath.dirname(package)
            items = {item.get("id", ""): item for item in _all(tree, "item")}
            titles = _contents(book, items, folder)
            title = next((node.text for node in _all(tree, "title") if node.text), None)
            parts = []
            for ref in _all(tree, "itemref"):
                item = items.get(ref.get("idref", ""))
                if item is None or "html" not in item.get("media-type", "html") or ref.get("linear") == "no":
                    continue
                if "nav" in item.get("properties", "").split():
                    continue
                parts.append(posixpath.normpath(posixpath.join(folder, unquote(item.get("href", "")))))
            missing = [part for part in parts if part not in names]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (
        zipfile.BadZipFile,
        ElementTree.ParseError,
        KeyError,
        LookupError,
        OSError,
        EOFError,
        RuntimeError,
    ) as error:
        raise UserError(f"{path} is no whole EPUB: {shorten(str(error))}") from None
    if missing or not parts:
        raise UserError(f"{path} is no whole EPUB: it lacks {shorten(missing[0]) if missing else 'every chapter'}")
    found = Book(title, [])
    lost: dict[str, int] = {}
    for part in parts:

        def read(part: str = part) -> Iterator[Paragraph]:
            page = _Page()
            with zipfile.ZipFile(path) as book:
                page.feed(_part(book, part).decode("utf-8", "replace"))
                page.close()
            for kind, count in page.lost.items():
                lost[kind] = lost.get(kind, 0) + count
            found.notes[:] = _told(lost)
            for block in page.blocks():
                yield Paragraph(tuple(inline(block)))

        found.chapters.append(Chapter(titles.get(part), read))
    return found


def _part(book: zipfile.ZipFile, name: str) -> bytes:
    if book.getinfo(name).file_size > MOST_BYTES:
        raise UserError(f"a part of the book is larger than {MOST_BYTES / 2**20:.0f} MiB: {shorten(name)}")
    return book.read(name)


def _tree(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    data = _part(book, name)
    if b"<!ENTITY" in data:
        raise UserError(f"a part of the book defines entities, which are not read: {shorten(name)}")
    return ElementTree.fromstring(data)


def _all(tree: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (node for node in tree.iter() if isinstance(node.tag, str) and node.tag.rpartition("}")[2] == tag)


def _first(tree: ElementTree.Element, tag: str) -> ElementTree.Element:
    found = next(_all(tree, tag), None)
    if found is None:
        raise LookupError(f"it names no {tag}")
    return found


def _contents(book: zipfile.ZipFile, items: dict[str, ElementTree.Element], folder: str) -> dict[str, str]:
    """Part -> title, of the table of contents: EPUB 3's nav, else EPUB 2's NCX."""
    found: dict[str, str] = {}
    for item in items.values():
        href = unquote(item.get("href", ""))
        place = posixpath.normpath(posixpath.join(folder, href))
        nav = "nav" in item.get("properties", "").split()
        if place not in book.namelist() or not (nav or "ncx" in item.get("media-type", "")):
            continue
        tree = _tree(book, place)
        for node in _all(tree, "a" if nav else "navPoint"):
            target = node.get("href", "") if nav else _first(node, "content").get("src", "")
            label = "".join(node.itertext() if nav else _first(node, "navLabel").itertext())
            part = posixpath.normpath(posixpath.join(posixpath.dirname(place), unquote(target.partition("#")[0])))
            if label.strip():
                found.setdefault(part, " ".join(label.split()))
    return found


class _Page(HTMLParser):
    """The text of one XHTML page, block by block."""

    BLOCKS = frozenset(
        "p div h1 h2 h3 h4 h5 h6 li blockquote section article br hr tr td th dt dd figcaption title body pre".split()
    )
    OUT = {"script": "", "style": "", "head": "", "table": "tables", "svg": "pictures", "math": "formulas", "sup": ""}
    VOID = frozenset(("img", "br", "hr", "meta", "link", "input"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lost: dict[str, int] = {}
        self._text: list[str] = []
        self._found: list[str] = []
        self._skipped: list[str] = []
        self._heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img" and not self._skipped:
            self.lost["pictures"] = self.lost.get("pictures", 0) + 1
        if tag in self.OUT:
            if not self._skipped and self.OUT[tag]:
                self.lost[self.OUT[tag]] = self.lost.get(self.OUT[tag], 0) + 1
            self._skipped.append(tag)
        elif tag in self.BLOCKS and not self._skipped:
            self._end_block()
            self._heading = tag in ("h1", "h2", "h3", "h4")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.VOID:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped and tag == self._skipped[-1]:
            self._skipped.pop()
        elif tag in self.BLOCKS and not self._skipped:
            self._end_block()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._text.append(data)

    def _end_block(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self._found.append(f"{text}." if self._heading and text[-1] not in ".!?:" else text)
        self._heading = False

    def blocks(self) -> list[str]:
        """What was read."""
        self._end_block()
        return self._found
