"""Keys and values of a sequence that grows by a row at a time, in memory taken once.

cache = Cache(layers=6, heads=4, depth=64, capacity=1100)
cache.begin(text=40)                     # for every chunk anew: the memory stays
attend = cache.fill(visible, lengths)    # the text and the prompt, all at once
attend = cache.step()                    # one row; cache.done() after it
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.speech.valle_r.network import Attend


class Cache:
    """Ring of memory (layers, 2, rows, heads, capacity, depth) that chunk after chunk is written into from its start.

    rows: sequences side by side. The first ``text`` places hold the text, padded to the longest; the sound follows.
    Sequences whose text or sound differ in length are told apart by masks, others by the length alone.
    """

    def __init__(
        self,
        *,
        layers: int,
        heads: int,
        depth: int,
        capacity: int,
        rows: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # zeros: a masked place has weight 0, and 0 times what lay in the memory before may be no number
        self.memory = torch.zeros(layers, 2, rows, heads, capacity, depth, device=device, dtype=dtype)
        self.capacity, self.rows = capacity, rows
        self.longest = 0  # places in use
        self.places: torch.Tensor | None = None  # (rows,) the next place of each, where they differ
        self.seen: torch.Tensor | None = None  # (rows, capacity) places that may be seen, where they differ

    @property
    def bytes(self) -> int:
        """Bytes of the memory."""
        return self.memory.numel() * self.memory.element_size()

    def fill(
        self,
        attend: Attend,
        count: int,
        text: int,
        text_lengths: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> Attend:
        """Attention of the first ``count`` rows, by ``attend``, which also keeps them: ``text`` places of text, then
        sound. text_lengths, lengths: (rows,) real places of text and of sound where they differ.

        Raises UserError when they are more than the cache holds.
        """
        self._room(count)
        self.longest = count
        self.places = self.seen = None
        if text_lengths is not None and lengths is not None:
            place = torch.arange(self.capacity, device=self.memory.device)
            self.places = text + lengths
            self.seen = (place < text_lengths[:, None]) | ((place >= text) & (place < self.places[:, None]))

        def keep(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.memory[layer, 0, :, :, :count] = k
            self.memory[layer, 1, :, :, :count] = v
            return attend(layer, q, k, v)

        return keep

    def step(self) -> Attend:
        """Attention of one more row of each sequence. One query sees all keys there are: torch's own serves it, which
        begins ten times sooner than a call that looks at masks and ranks. Raises UserError when the cache is full."""
        if self.places is None:
            self._room(self.longest + 1)
            place = self.longest
            self.longest += 1

            def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                held = self.memory[layer]
                held[0, :, :, place : place + 1] = k
                held[1, :, :, place : place + 1] = v
                return F.scaled_dot_product_attention(q, held[0, :, :, : place + 1], held[1, :, :, : place + 1])

            return attend
        return self._ragged()

    def _ragged(self) -> Attend:
        assert self.places is not None and self.seen is not None
        here = self.places
        self.longest = int(here.max()) + 1
        self._room(self.longest)
        rows = torch.arange(self.rows, device=here.device)
        self.seen[rows, here] = True
        mask = self.seen[:, None, None, : self.longest]
        self.places = here + 1

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            held = self.memory[layer]
            held[0, rows, :, here] = k[:, :, 0]
            held[1, rows, :, here] = v[:, :, 0]
            keys, values = held[0, :, :, : self.longest], held[1, :, :, : self.longest]
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)

        return attend

    def _room(self, count: int) -> None:
        if count > self.capacity:
            raise UserError(
                f"this cache holds {self.capacity} rows of text and sound, {count} are needed: make shorter chunks "
                "or a larger cache"
            )
