"""The part of VALL-E R that is not autoregressive: codec layers 2 to D, one after the other, all frames at once.

Each row sums what is known of its frame: the codes of the layers before, the phoneme that the pointer says, its place;
frames of the prompt are known in all layers. Norms depend on the layer that is asked for (AdaLN).
Shape legend: B batch, L phonemes of the text, T frames at the full rate, D layers, K codes; stage j asks for layer
j + 1 counted from 0, j = 0..D-2.
"""

from __future__ import annotations

from typing import Any

import torch
from longtake.errors import UserError
from longtake.kernels import Partition
from longtake.speech.codec.mels import Block
from longtake.speech.valle_r.ar import IGNORED, Spoken, softened
from longtake.speech.valle_r.network import Places, Size, Transformer, by_mask, by_rule
from torch import nn

TIES = ("next", "same")
EXPECTED = 2.0  # of the loss: how much what is expected counts beside the codes


class NAR(nn.Module):
    """See the module.

    tie: whose embeddings the heads share: "next", those of the layer after, the last head free (the public VALL-E), or
    "same", those of the layer asked for. scale: of the codes' embeddings where rows sum them. stage: width of a stage's
    vector, None: that of the rows. phonemes: whether rows carry the phoneme (VALL-E R) or not (VALL-E). first: codes of
    the first layer's table, K, or K + 1 with an end. local: blocks of convolutions that rows of sound pass first: a
    frame lies between its neighbours, which attention, with places alone to tell it, learns slowly. Raises UserError
    for another tie and for fewer than 2 layers.
    """

    def __init__(
        self,
        size: Size,
        *,
        symbols: int = 178,
        entries: int = 1024,
        first: int | None = None,
        layers_of_codes: int = 8,
        dropout: float = 0.1,
        phonemes: bool = True,
        around: int = 0,
        place: bool = False,
        dwell: int = 0,
        tie: str = "next",
        stage: int | None = None,
        scale: float = 1.0,
        local: int = 0,
    ) -> None:
        super().__init__()
        if tie not in TIES:
            raise UserError(f"heads may be tied to {' or '.join(TIES)}, got {tie!r}")
        if layers_of_codes < 2:
            raise UserError(f"a codec of at least 2 layers is needed, got {layers_of_codes}")
        self.size, self.symbols, self.entries, self.count, self.tie = size, symbols, entries, layers_of_codes, tie
        self.scale = scale
        self.config: dict[str, Any] = {
            "width": size.width,
            "heads": size.heads,
            "layers": size.layers,
            "feedforward": size.feedforward,
            "symbols": symbols,
            "entries": entries,
            "first": first,
            "layers_of_codes": layers_of_codes,
            "dropout": dropout,
            "phonemes": phonemes,
            "around": around,
            "place": place,
            "dwell": dwell,
            "tie": tie,
            "stage": stage,
            "scale": scale,
            "local": local,
        }
        width = size.width
        self.text_emb = nn.Embedding(symbols, width)
        sizes = [entries if first is None else first] + [entries] * (layers_of_codes - 1)
        self.code_embs = nn.ModuleList(nn.Embedding(many, width) for many in sizes)
        self.text_place, self.code_place = Places(width), Places(width)
        self.spoken = Spoken(symbols, width, around, place, dwell) if phonemes else None
        self.local = nn.ModuleList(Block(width, 2) for _ in range(local))
        self.stages = nn.Embedding(layers_of_codes - 1, stage or width)
        self.transformer = Transformer(size, dropout, stage or width)
        self.last = nn.Parameter(torch.randn(entries, width) * width**-0.5) if tie == "next" else None
        for table in self.tables():  # heads too
            nn.init.normal_(table, std=width**-0.5)

    @classmethod
    def of(cls, config: dict[str, Any]) -> NAR:
        """From ``config``."""
        told = dict(config)
        return cls(Size(*(told.pop(key) for key in ("width", "heads", "layers", "feedforward"))), **told)

    def tables(self) -> list[torch.Tensor]:
        """The embeddings (K, d) of each layer's codes."""
        return [table.get_parameter("weight") for table in self.code_embs]

    def heads(self) -> torch.Tensor:
        """Weights (D - 1, K, d) of the stages' heads."""
        tables = self.tables()
        chosen = tables[1:] if self.last is None else [*tables[2:], self.last]
        return torch.stack(chosen)

    def known(self, codes: torch.Tensor, stage: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Sum (B, T, d) of the codes (B, D, T) that a stage (B,) may see: layers 0..j, of the first ``prompt`` (B,)
        frames all."""
        frames = torch.arange(codes.shape[2], device=codes.device)
        given = frames < prompt[:, None]
        total = torch.zeros((), device=codes.device)
        for layer, table in enumerate(self.code_embs):
            seen = given | (stage >= layer)[:, None]
            total = total + torch.where(seen[..., None], table(codes[:, layer]), 0.0)
        return self.scale * total

    def forward(
        self,
        text: torch.Tensor,
        codes: torch.Tensor,
        pointer: torch.Tensor | None,
        stage: torch.Tensor,
        prompt: torch.Tensor,
        text_lengths: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (B, T, K) of the layer that ``stage`` (B,) asks for.

        text: (B, L). codes: (B, D, T), any code where a layer is not known yet. pointer: (B, T), the phoneme of each
        frame. prompt: (B,) how many frames are known in all layers. text_lengths, lengths: (B,) where rows are padded.
        """
        many = text.shape[1]
        x = self.rows(text, codes, pointer, stage, prompt, lengths)
        if text_lengths is None or lengths is None:
            attend = by_rule(None)
        else:
            place = torch.arange(x.shape[1], device=text.device)
            sound = (place >= many) & (place < many + lengths[:, None])
            seen = ((place < text_lengths[:, None]) | sound)[:, None]
            attend = by_mask(seen.expand(-1, x.shape[1], -1))
        return self.say(self.transformer(x, attend, self.stages(stage))[:, many:], stage)

    def rows(
        self,
        text: torch.Tensor,
        codes: torch.Tensor,
        pointer: torch.Tensor | None,
        stage: torch.Tensor,
        prompt: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows (B, L + T, d) of text and sound; tensors as in ``forward``."""
        sound = self.known(codes, stage, prompt) + self.code_place.first(codes.shape[2])
        if self.spoken is not None:
            assert pointer is not None
            sound = sound + self.spoken(text, pointer)
        real = None
        if lengths is not None:
            real = (torch.arange(sound.shape[1], device=sound.device) < lengths[:, None])[..., None].to(sound.dtype)
        for block in self.local:
            sound = block(sound, real)
        return torch.cat([self.text_emb(text) + self.text_place.first(text.shape[1]), sound], 1)

    def say(self, hidden: torch.Tensor, stage: torch.Tensor) -> torch.Tensor:
        """Logits (B, n, K) of rows (B, n, d)."""
        return hidden @ self.heads().index_select(0, stage).to(hidden.dtype).transpose(1, 2)

    def complete(
        self, text: torch.Tensor, codes: torch.Tensor, pointer: torch.Tensor | None, prompt: int = 0, mesh: Any = None
    ) -> torch.Tensor:
        """All layers (D, T) of codes whose first layer is known, and the ``prompt`` first frames in all layers.

        text: (L,). codes: (D, T). pointer: (T,). Greedy, layer by layer. mesh: a ``Transport`` over whose ranks the
        rows of a long sequence are split; each gives the same tensors and gets all codes. None: this process alone.
        """
        return self._fill(text, codes, pointer, prompt, None, mesh)[0]

    def expect(
        self,
        text: torch.Tensor,
        codes: torch.Tensor,
        pointer: torch.Tensor | None,
        prompt: int,
        books: torch.Tensor,
        mesh: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``complete``'s codes (D, T), and the latent (T, c) that is to be expected: the first layer's vector and for
        each other layer the mean of its codebook (K, c) of ``books`` (D, K, c) under the probabilities of its codes.

        Layers whose codes are close to chance add next to nothing to that, where their likeliest code would add noise.
        In the prompt, too, it is what is expected, not what is known.
        """
        codes, more = self._fill(text, codes, pointer, prompt, books, mesh)
        assert more is not None
        return codes, books[0][codes[0]] + more

    @torch.no_grad()
    def _fill(
        self,
        text: torch.Tensor,
        codes: torch.Tensor,
        pointer: torch.Tensor | None,
        prompt: int,
        books: torch.Tensor | None,
        mesh: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The codes, and the sum (T, c) of the expected vectors of layers 2 to D where ``books`` are given."""
        codes = codes.clone()
        known = torch.tensor([prompt], device=codes.device)
        where = None if pointer is None else pointer[None]
        total = None if books is None else torch.zeros_like(books[0][codes[0]])
        for stage in range(self.count - 1):
            asked = torch.tensor([stage], device=codes.device)
            x = self.rows(text[None], codes[None], where, asked, known)
            if mesh is None:
                said = self.say(self.transformer(x, by_rule(None), self.stages(asked))[:, text.shape[0] :], asked)
                found, vector = said.argmax(-1), None if books is None else said.softmax(-1) @ books[stage + 1]
            else:
                split = Partition.even(x.shape[1], mesh.world)
                start, stop = split.pieces[mesh.rank]
                said = self.say(self.transformer(x[:, start:stop], by_rule(None, mesh), self.stages(asked)), asked)
                found, vector = said.argmax(-1), None if books is None else said.softmax(-1) @ books[stage + 1]
                every = range(x.shape[1])
                found = mesh.start_gather([found], 1, split, every).wait()[0][:, text.shape[0] :]
                if vector is not None:
                    vector = mesh.start_gather([vector.contiguous()], 1, split, every).wait()[0][:, text.shape[0] :]
            codes[stage + 1, prompt:] = found[0, prompt:]
            if total is not None and vector is not None:
                total = total + vector[0]
        return codes, total


def objective(
    network: Any,
    soft: torch.Tensor | None,
    text: torch.Tensor,
    text_lengths: torch.Tensor,
    codes: torch.Tensor,
    pointer: torch.Tensor,
    lengths: torch.Tensor,
    prompt: torch.Tensor,
    stage: torch.Tensor,
    heard: torch.Tensor | None = None,
    books: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross entropy, a scalar, of the layer that each row's stage (B,) asks for, frames of the prompt left out.

    text: (B, L); codes: (B, D, T); pointer: (B, T), both of any valid number beyond lengths (B,); prompt: (B,).
    soft: (D - 1, K, K) what is asked for instead of each code of a stage, rows sum to 1; None: the code alone.
    heard: (B, D, T) the codes that rows carry where they are not ``codes`` themselves. books: (D, K, c) codebooks; with
    them ``missed`` is added, ``EXPECTED`` times.
    """
    said = network(text, codes if heard is None else heard, pointer, stage, prompt, text_lengths, lengths)
    target = targets(codes, stage, prompt, lengths)
    shifted = target
    if soft is not None:
        shifted = torch.where(target == IGNORED, IGNORED, target + stage[:, None] * soft.shape[1])
    value = softened(said.flatten(0, 1), shifted.flatten(), None if soft is None else soft.flatten(0, 1))
    return value if books is None else value + EXPECTED * missed(said, target, books[1:].index_select(0, stage))


def missed(said: torch.Tensor, target: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """How far, a scalar, what is expected of logits (B, T, K) lies from the vectors of targets (B, T), of codebooks
    (B, K, c): the mean square, as a share of that of the vectors; 1 says nothing, 0 everything. That is what
    ``NAR.expect`` decodes, and it is learned long before the codes are."""
    expected = said.float().softmax(-1) @ books
    wanted = books.gather(1, target.clamp_min(0)[..., None].expand(-1, -1, books.shape[2]))
    asked = (target != IGNORED)[..., None]
    gap, size = ((expected - wanted).square() * asked).sum((1, 2)), (wanted.square() * asked).sum((1, 2))
    return (gap / size.clamp_min(1e-8)).mean()


@torch.no_grad()
def begin_from(model: NAR, books: torch.Tensor) -> None:
    """Set the embeddings of codes, which are its heads too, on one random projection of the codebooks (D, K, c): codes
    that sound alike begin alike, and a sum of codes is that of their vectors."""
    width = model.size.width
    turn = torch.randn(books.shape[2], width, device=books.device)
    for table, book in zip(model.tables(), books, strict=True):
        rows = book.float() @ turn
        table[: len(rows)].copy_(rows / rows.std() * width**-0.5)


def targets(codes: torch.Tensor, stage: torch.Tensor, prompt: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """What a row is to say (B, T): the codes of its stage's layer, ``IGNORED`` in the prompt and beyond its end."""
    asked = codes.gather(1, (stage + 1)[:, None, None].expand(-1, 1, codes.shape[2]))[:, 0]
    frames = torch.arange(codes.shape[2], device=codes.device)
    return torch.where((frames >= prompt[:, None]) & (frames < lengths[:, None]), asked, IGNORED)
