"""LongForm: text of any length through a voice, chunk by chunk, streamed, resumed, redone.

    take = LongForm(voice, writer)
    for packet in take.stream("Good evening. ..."):
        play(packet.samples)

Every arrow is a generator: text -> sentences -> chunks -> pieces -> samples; memory is bounded by a chunk, and the cost
of a packet does not depend on what came before. A chunk's noise is named by (seed, its number, its redo), so the same
text and seed give the same bytes, whatever was kept of an earlier run and however many ranks shared the chunks.

carry="tail": a chunk goes on from the state that the one before handed over; its chunks are then made in order, on one
rank. carry="none": each chunk alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from longtake.distributed import Ranks
from longtake.errors import UserError, shorten
from longtake.noise import frame_seed
from longtake.speech.backends.voice import Utterance, Voice, check
from longtake.speech.longform.pieces import Joiner, Memory, Piece, Store, Word, digest, state_digest
from longtake.speech.longform.planner import Chunk, Planner
from longtake.speech.text.script import Writer
from longtake.speech.text.segments import Paragraph, Style

CARRIES = ("none", "tail")
Text = str | Iterable[str] | Callable[[], Iterable[Paragraph]]  # a book is read anew for each pass over it
OnChunk = Callable[[int, int], bool]  # (chunks done, chunks in all) -> whether to end after this one


@dataclass(frozen=True)
class Packet:
    """A stretch of the take. samples: float32; start: of it, in samples; words: those that this chunk added, in samples
    of the whole take; chunk: its number, -1 for the end."""

    samples: np.ndarray
    start: int
    words: list[Word]
    chunk: int


@dataclass
class LongForm:
    """See the module's docstring.

    asked: what holds for all chunks (speaker, rate, pitch, steps, temperature); its units and seed are not read.
    pauses: scale of the pauses that nobody asked for. redo: chunk -> how often it is made anew. name: of the voice, in
    messages.
    """

    voice: Voice
    writer: Writer
    planner: Planner | None = None
    carry: str = "none"
    pauses: float = 1.0
    asked: Utterance = field(default_factory=lambda: Utterance(()))
    redo: Mapping[int, int] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        if self.carry not in CARRIES:
            raise UserError(f"carry is one of {', '.join(CARRIES)}; given {self.carry!r}")
        if self.planner is None:
            self.planner = Planner(symbol=self.voice.symbol_seconds / self.asked.rate)
        check(self.voice, (), self.asked, carry=self.carry == "tail", name=self.name)

    # ------------------------------------------------------------------------------------------------------- plan

    def chunks(self, text: Text) -> Iterator[Chunk]:
        """The chunks of a text, in order; what the voice cannot do is refused where it stands."""
        assert self.planner is not None
        source = text() if callable(text) else text
        seen: set[Style] = set()
        for chunk in self.planner.chunks(self.writer.sentences(source)):
            if not self.voice.abilities.phones and not all(unit.spoken for unit in chunk.units):
                raise UserError(f"the voice {self.name or type(self.voice).__name__} reads words: it knows no IPA")
            fresh = {unit.style for unit in chunk.units} - seen
            if fresh:
                check(self.voice, fresh, self.asked, name=self.name)
                seen |= fresh
            yield chunk

    def count(self, text: Text) -> int:
        """How many chunks a text has, every one of them looked at. Raises UserError for a text without any."""
        chunks = sum(1 for _ in self.chunks(text))
        if not chunks:
            why = f": {'; '.join(self.writer.told)}" if self.writer.told else ""
            raise UserError(f"there is nothing to say: the text has no words{why}")
        return chunks

    def chunks_of(self, text: Text, sentence: int) -> list[int]:
        """Numbers of the chunks that hold a part of a sentence (from 1). Raises UserError where there is none."""
        found, last = [], -1
        for chunk in self.chunks(text):
            last = chunk.sentences[1]
            if chunk.sentences[0] <= sentence - 1 <= last:
                found.append(chunk.index)
        if not found:
            raise UserError(f"sentence must be 1 to {last + 1}, the sentences of the text; given {sentence}")
        return found

    # ------------------------------------------------------------------------------------------------------ making

    def piece(self, chunk: Chunk, seed: int, before: Piece | None = None) -> Piece:
        """One chunk said and cut. before: the piece that it goes on from."""
        state = before.state if before is not None and self.carry == "tail" else None
        asked = replace(
            self.asked,
            units=chunk.units,
            seed=frame_seed(seed, 0, chunk.index, self.redo.get(chunk.index, 0)),
            ends=chunk.end not in ("word", "phrase"),
            speaker=chunk.speaker or self.asked.speaker,
        )
        said = self.voice.say(asked, state)
        if self.carry == "none":
            said.state = None
        piece = Piece.of(said, chunk, self.voice.rate, scale=self.pauses, origin=self.origin(chunk, seed, before))
        return piece

    def origin(self, chunk: Chunk, seed: int, before: Piece | None) -> str:
        """What decides a piece, in brief: a kept one of the same origin is the same."""
        tail = state_digest(before.state) if before is not None and self.carry == "tail" else ""
        asked = replace(self.asked, units=chunk.units, seed=0)
        return digest(self.voice.mark, self.carry, self.pauses, seed, self.redo.get(chunk.index, 0), chunk, asked, tail)

    def pieces(self, text: Text, seed: int, store: Store | None = None) -> Iterator[Piece]:
        """The pieces of a text, in order; those that the store holds are taken from it, the others made and put."""
        before: Piece | None = None
        for chunk in self.chunks(text):
            piece = self._kept(store, chunk, seed, before)
            if piece is None:
                piece = self.piece(chunk, seed, before)
                if store is not None:
                    store.put(piece)
            yield piece
            before = piece

    def _kept(self, store: Store | None, chunk: Chunk, seed: int, before: Piece | None) -> Piece | None:
        piece = None if store is None else store.get(chunk.index)
        if piece is None:
            return None
        # a redone neighbour hands on another state: what was made from the old one stays, with the same join
        if self.redo and chunk.index not in self.redo:
            words = [word.text for word in piece.words if not word.mark]
            if words != [unit.text for unit in chunk.units]:
                raise UserError(
                    f"the take to redo says {shorten(' '.join(words))!r} where this text has "
                    f"{shorten(' '.join(unit.text for unit in chunk.units))!r}: only a redone sentence may differ"
                )
            return piece
        return piece if piece.origin == self.origin(chunk, seed, before) else None

    def stream(self, text: Text, seed: int = 0, store: Store | None = None) -> Iterator[Packet]:
        """Packets in order; together they are the whole take. Raises UserError for a text without words."""
        placed: list[Word] = []

        def place(piece: Piece, start: int) -> None:
            placed[:] = [replace(word, start=word.start + start, end=word.end + start) for word in piece.words]

        joiner, chunk = Joiner(self.voice.rate, place), -1
        for piece in self.pieces(text, seed, store):
            start, chunk = joiner.length, piece.index
            samples = joiner.add(piece)
            yield Packet(samples, start, list(placed), chunk)
        if chunk < 0:
            self.count("")
        start = joiner.length
        yield Packet(joiner.end(), start, [], -1)

    def make(
        self, text: Text, seed: int, store: Store, ranks: Ranks | None = None, on_chunk: OnChunk | None = None
    ) -> tuple[int, int]:
        """Put every piece of a text into the store, shared by ranks: (chunks done, chunks in all).

        on_chunk is asked after each round of as many chunks as there are ranks, on every rank alike. Raises UserError,
        before anything is made, for a text without words and for carry "tail" on several ranks.
        """
        ranks = ranks or Ranks.single()
        if ranks.world > 1 and self.carry != "none":
            raise UserError(
                f"carry {self.carry} is made in order, on one rank: use carry none with {ranks.world} ranks"
            )
        total, done = self.count(text), 0
        before: Piece | None = None
        batch: list[Chunk] = []
        for chunk in self.chunks(text):
            batch.append(chunk)
            if len(batch) < ranks.world and chunk.index < total - 1:
                continue
            fresh = False
            made: Piece | None = None
            if ranks.rank < len(batch):
                mine = batch[ranks.rank]
                made = self._kept(store, mine, seed, before)
                if made is None:
                    made, fresh = self.piece(mine, seed, before), True
                    store.put(made)
                if self.carry == "tail":
                    before = made
            if isinstance(store, Memory) and ranks.world > 1:
                for piece in ranks.gather_object(made):
                    if piece is not None:
                        store.put(piece)
            done += len(batch)
            batch = []
            if any(ranks.gather_object(fresh)) and on_chunk is not None:
                if any(ranks.gather_object(bool(on_chunk(done, total)))):
                    break
        ranks.barrier()
        return done, total
