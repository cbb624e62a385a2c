"""One line on somebody else's model: fewer tokens of its films, those that the question asks for.

    with pool(model, processor, budget=2000) as pooling:
        answer = model.generate(**inputs)
    print(pooling.explain())

Between the model's own vision tower and its language model, windows of a film's tokens become one token each
(`longtake.kernels.pooling`). Prompt, masks, grids and time stamps follow. No class is replaced, no weight is changed;
at the end of the block the model is what it was. With windows of one token its numbers are its own to the bit.
"""

import functools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.kernels.pooling.guided import WeightMode, prompt_guided_pool3d
from longtake.kernels.pooling.windows import Tail, Triple, Windows, resolve_windows
from longtake.video.reading.budget import (
    Budget,
    cache_bytes,
    kernel_for,
    parse_budget,
    told_bytes,
)
from longtake.video.reading.cut import Film, find_films, most_frames, shortened_row
from longtake.video.reading.families import Encoded, Family, family_of, features
from longtake.video.reading.guide import Effect, PromptGuide, explain
from torch import Tensor

Scorer = Callable[[int, Triple], Tensor]
_HELD: "weakref.WeakSet[Any]" = weakref.WeakSet()
_SHARPNESS = 100.0  # of the model's own guide, as CLIP's scale


@dataclass
class Pooling:
    """What one `pool` block does. `before` and `after`: placeholders of the last call; `effects`: one for each film."""

    model: Any
    family: Family
    budget: Budget
    mode: WeightMode
    kernel: Triple | None
    tokenizer: Any
    question: Sequence[str] | None
    guide: "PromptGuide | Scorer | None"
    frames: Sequence[Tensor] | None
    scores: Sequence[Tensor] | None
    speed: tuple[float, float] | None = None
    before: int = 0
    after: int = 0
    windows: list[Windows] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    @property
    def inner(self) -> Any:
        return self.model.base_model

    @property
    def text_config(self) -> Any:
        return self.model.config.get_text_config()

    def explain(self, inputs: Mapping[str, Any] | None = None) -> str:
        """Tokens, bytes of keys and values, windows and what the guidance did. inputs: for an estimate before a run."""
        before, after = self.before, self.after
        lines = []
        if inputs is not None:
            before = int((inputs["input_ids"] == getattr(self.model.config, self.family.token)).sum())
            rows = len(inputs["input_ids"])
            after = min(before, rows * self.most_tokens()) if self.kernel is None else before
            lines.append(f"{self.family.name}, budget {self.budget} a prompt, before a run")
        elif not self.windows:
            return f"{self.family.name}, budget {self.budget} a prompt; no film has been read yet"
        else:
            lines.append(f"{self.family.name}, budget {self.budget} a prompt")
        size = next(self.model.parameters()).element_size()
        held = [told_bytes(cache_bytes(self.text_config, count, size)) for count in (before, after)]
        lines.append(
            f"tokens of films {before} -> {after} ({before / max(after, 1):.1f} times fewer), keys and values "
            f"{held[0]} -> {held[1]}"
        )
        if inputs is None:
            for windows, effect in zip(self.windows, self.effects, strict=True):
                shape = " x ".join(map(str, windows.input)), " x ".join(map(str, windows.kernel))
                lines.append(f"film of {shape[0]} tokens in windows of {shape[1]}; {effect}")
        return "\n".join(lines)

    def most_tokens(self) -> int:
        """The budget of one prompt in tokens; seconds are turned into tokens by timing the language model once."""
        if self.budget.tokens is not None:
            return self.budget.tokens
        assert self.budget.seconds is not None
        if self.speed is None:
            self.speed = measured_speed(self.inner, self.text_config)
        linear, square = self.speed
        if square <= 0:
            return max(1, int(self.budget.seconds / linear))
        return max(1, int((-linear + (linear**2 + 4 * square * self.budget.seconds) ** 0.5) / (2 * square)))

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Inputs with films -> inputs with pooled features in their place; others are returned as they are."""
        family = self.family
        if inputs.get(family.pixels) is None:
            return inputs
        ids = inputs.get("input_ids")
        if ids is None or inputs.get("inputs_embeds") is not None:
            raise UserError("pool needs input_ids: it finds the films by their placeholders")
        if inputs.get("position_ids") is not None:
            raise UserError("pool makes positions anew; leave position_ids out")
        if inputs.get("mm_encoder_outputs"):
            raise UserError("mm_encoder_outputs are made by pool; leave them out")
        mask = inputs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise UserError(f"pool takes an attention_mask of (prompts, length), {tuple(mask.shape)} given")
        encoded = family.encode(self.inner, inputs)
        token = getattr(self.model.config, family.token)
        films = find_films(ids.cpu(), token, encoded.frame, encoded.sizes, encoded.extra, len(encoded.flat))
        windows = self.choose(films, ids)
        self.windows, self.effects = windows, []
        self.before = sum(film.tokens for film in films)
        self.after = sum(w.tokens + film.extra.numel() for film, w in zip(films, windows, strict=True))
        pooled = [
            self.reduce(encoded, *pair, ids, mask, at) for at, pair in enumerate(zip(films, windows, strict=True))
        ]
        made = self.shortened(inputs, films, windows)
        made["mm_encoder_outputs"] = {family.modality: _returned(family, encoded, films, windows, pooled)}
        other = "image" if family.modality == "video" else "video"
        key = "pixel_values" if other == "image" else "pixel_values_videos"
        if inputs.get(key) is not None:
            made["mm_encoder_outputs"][other] = features(self.inner, other, inputs)
        return {k: v for k, v in made.items() if not k.startswith("pixel_")}

    def choose(self, films: list[Film], ids: Tensor) -> list[Windows]:
        """Windows for each film, so that the films of each prompt keep the budget together."""
        chosen = []
        for film in films:
            longest = most_frames(film, ids, self.family.stamp, self.tokenizer)
            kernel = self.kernel
            if kernel is None:
                mates = [other for other in films if other.row == film.row]
                spare = self.most_tokens() - sum(other.extra.numel() for other in mates)
                total = sum(other.slots.numel() for other in mates)
                kernel = kernel_for(film.size, spare * film.slots.numel() // total, longest)
            elif longest is not None and kernel[0] > longest:
                raise UserError(
                    f"windows of {kernel[0]} frames, but each frame has a text of its own; give pool the processor, or "
                    "a kernel of (1, h, w)"
                )
            sizes = [min(k, length) for k, length in zip(kernel, film.size, strict=True)]
            chosen.append(resolve_windows(film.size, (sizes[0], sizes[1], sizes[2]), tail=Tail.KEEP))
        return chosen

    def reduce(
        self, encoded: Encoded, film: Film, windows: Windows, ids: Tensor, mask: Tensor | None, at: int
    ) -> list[Tensor]:
        """Pooled features of a film, each (n, D): the features, then those that go deeper in."""
        count = film.slots.numel()
        cut = slice(film.first, film.first + count)
        seen = encoded.flat[cut].view(1, *film.size, -1)
        if self.mode is WeightMode.UNIFORM:
            scores = torch.zeros(1, *film.size, device=seen.device)
        else:
            scores = self.scored(seen, film, ids, mask, at).to(seen.device)
        self.effects.append(explain(scores.float().cpu(), windows.kernel, windows.stride, self.mode))
        guided = None if self.mode is WeightMode.UNIFORM else scores
        made = []
        for flat in (encoded.flat, *encoded.deep):
            x = flat[cut].view(1, *film.size, -1)
            pooled = prompt_guided_pool3d(
                x, logits=guided, kernel=windows.kernel, tail=Tail.KEEP, weight_mode=self.mode, layout="bthwc"
            )
            behind = flat[film.first + count : film.first + count + encoded.extra]
            made.append(torch.cat([pooled.flatten(0, 3), behind]))
        return made

    def scored(self, seen: Tensor, film: Film, ids: Tensor, mask: Tensor | None, at: int) -> Tensor:
        """Scores (1, T, H, W) of a film for the question of its prompt."""
        if self.scores is not None:
            return resized(self.scores[at], film.size)
        if isinstance(self.guide, PromptGuide):
            question = self.question_of(film.row)
            if self.frames is None or question is None:
                raise UserError("a guide of its own needs frames= (prepared for it) and question=")
            with torch.no_grad():
                return resized(self.guide(self.frames[at][None], [question])[0], film.size)
        if self.guide is not None:
            return resized(self.guide(at, film.size), film.size)
        return own_scores(seen, self.inner.get_input_embeddings().weight, self.words(film.row, ids, mask))

    def question_of(self, row: int) -> str | None:
        if self.question is None:
            return None
        return self.question[row] if len(self.question) > 1 else self.question[0]

    def words(self, row: int, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Ids of the question; without one those of the prompt less what stands for films and what is special."""
        question = self.question_of(row)
        if question is not None:
            if self.tokenizer is None:
                raise UserError("a question as text needs the processor: pool(model, processor, ...)")
            return torch.tensor(self.tokenizer.encode(question, add_special_tokens=False), device=ids.device)
        keep = torch.ones_like(ids[row], dtype=torch.bool) if mask is None else mask[row].bool()
        config = self.model.config
        special = {getattr(config, name, None) for name in ("image_token_id", "video_token_id", "pad_token_id")}
        special |= set(getattr(self.tokenizer, "all_special_ids", []) or [])
        for one in special - {None}:
            keep &= ids[row] != one
        return ids[row][keep]

    def shortened(self, inputs: dict[str, Any], films: list[Film], windows: list[Windows]) -> dict[str, Any]:
        """The inputs with shorter prompts: every tensor of (prompts, length) is cut, grids follow."""
        ids = inputs["input_ids"]
        rows = []
        for row in range(len(ids)):
            mine = [(film, w) for film, w in zip(films, windows, strict=True) if film.row == row]
            rows.append(shortened_row(ids[row].cpu(), mine, self.family.stamp, self.tokenizer))
        if all(kept == list(range(ids.shape[1])) for _, kept in rows):
            made = dict(inputs)
        else:
            made = self._cut(inputs, rows)
        if self.family.grid and any(max(w.kernel) > 1 for w in windows):
            merge = self.inner.visual.spatial_merge_size
            grid = inputs["video_grid_thw"]
            out = [[w.output[0], w.output[1] * merge, w.output[2] * merge] for w in windows]
            made["video_grid_thw"] = torch.tensor(out, dtype=grid.dtype, device=grid.device)
            if self.family.name == "qwen2_5_vl":
                given = inputs.get("second_per_grid_ts")
                each = [1.0] * len(windows) if given is None else [float(s) for s in given]
                made["second_per_grid_ts"] = torch.tensor([s * w.stride[0] for s, w in zip(each, windows, strict=True)])
        return made

    def _cut(self, inputs: dict[str, Any], rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        longest = max(len(kept) for kept, _ in rows)
        right = mask is not None and bool((mask[:, -1] == 0).any())
        configs = [getattr(self.model, "generation_config", None), self.text_config]
        pad = next((c.pad_token_id for c in configs if getattr(c, "pad_token_id", None) is not None), 0)
        pad = pad[0] if isinstance(pad, list) else pad
        if mask is None and any(len(kept) != longest for kept, _ in rows):
            mask = torch.ones_like(ids)
            inputs = inputs | {"attention_mask": mask}
        made = dict(inputs)
        new = {"attention_mask": 1, "labels": -100}
        for name, value in inputs.items():
            if not isinstance(value, Tensor) or value.shape[:2] != ids.shape or value.dim() != 2:
                continue
            fill = {"input_ids": pad, "labels": -100}.get(name, 0)
            table = torch.full((len(rows), longest), fill, dtype=value.dtype)
            source = value.cpu()
            for row, (kept, places) in enumerate(rows):
                at = torch.tensor(places)
                line = source[row][at.clamp(min=0)]
                line[at < 0] = new.get(name, 0)
                line = torch.tensor(kept, dtype=value.dtype) if name == "input_ids" else line
                span = slice(0, len(kept)) if right else slice(longest - len(kept), longest)
                table[row, span] = line
            made[name] = table.to(value.device)
        return made


def _returned(
    family: Family, encoded: Encoded, films: list[Film], windows: list[Windows], pooled: list[list[Tensor]]
) -> Any:
    """Pooled features as the model wants them."""

    def laid(which: int) -> Any:
        each = [one[which] for one in pooled]
        if family.returned == "films":
            return each
        if family.returned == "stack":
            if len({len(one) for one in each}) > 1:
                raise UserError(f"{family.name} takes films of one length in a batch")
            return torch.stack(each)
        if family.returned == "frames":
            areas = {w.output[1] * w.output[2] for w in windows}
            if len(areas) > 1:
                raise UserError(f"{family.name} takes frames of one size in a batch; give a kernel instead of a budget")
            return torch.cat(each).unflatten(0, (-1, areas.pop()))
        rows: dict[int, list[Tensor]] = {}
        for film, one in zip(films, each, strict=True):
            rows.setdefault(film.row, []).append(one)
        return [torch.cat(mine) for mine in rows.values()]

    made = type(encoded.output)(pooler_output=laid(0))
    if encoded.deep:
        made.deepstack_features = [laid(1 + which) for which in range(len(encoded.deep))]
    return made


def own_scores(seen: Tensor, embeddings: Tensor, words: Tensor) -> Tensor:
    """The model's own text tower as guide: features and words share the language model's space.

    seen: (1, T, H, W, D). embeddings: (V, D). words: ids of the question. Score: 100 times the cosine between a feature
    less the film's mean feature and the mean embedding of the words less that of all words. (1, T, H, W), float32.
    """
    if len(words) == 0:
        return torch.zeros(seen.shape[:4], device=seen.device)
    said = embeddings[words.to(embeddings.device)].float().mean(0) - embeddings.float().mean(0)
    x = seen.float()
    x = x - x.mean((1, 2, 3), keepdim=True)
    return _SHARPNESS * (F.normalize(x, dim=-1) @ F.normalize(said.to(x.device), dim=0))


def resized(scores: Tensor, size: Triple) -> Tensor:
    """Scores (t, h, w) of a guide with another grid -> (1, T, H, W), linear between the centres of its cells."""
    if scores.dim() != 3:
        raise UserError(f"scores of a film are (frames, rows, columns), {tuple(scores.shape)} given")
    if tuple(scores.shape) == tuple(size):
        return scores[None]
    return F.interpolate(scores[None, None].float(), size=size, mode="trilinear", align_corners=False)[0]


def measured_speed(inner: Any, config: Any) -> tuple[float, float]:
    """Seconds a * n + b * n**2 in which the language model reads n tokens on this machine: (a, b)."""
    tower = getattr(inner, "language_model", None) or inner.text_model
    weight = inner.get_input_embeddings().weight
    times = []
    for count in (128, 512):
        embeds = torch.zeros(1, count, weight.shape[1], dtype=weight.dtype, device=weight.device)
        best = float("inf")
        for _ in range(3):
            begun = time.perf_counter()
            with torch.inference_mode():
                float(tower(inputs_embeds=embeds, use_cache=False).last_hidden_state[0, -1, 0])
            best = min(best, time.perf_counter() - begun)
        times.append(best)
    square = (times[1] / 512 - times[0] / 128) / (512 - 128)
    return max(times[0] / 128 - square * 128, times[1] / 2048), max(square, 0.0)


@contextmanager
def pool(
    model: Any,
    processor: Any = None,
    budget: int | str = 2000,
    *,
    question: str | Sequence[str] | None = None,
    mode: WeightMode | str = WeightMode.LOCAL,
    kernel: int | Triple | None = None,
    guide: "PromptGuide | Scorer | None" = None,
    frames: Sequence[Tensor] | None = None,
    scores: Sequence[Tensor] | None = None,
) -> Iterator[Pooling]:
    """Within the block, `model(...)` and `model.generate(...)` read pooled films.

    model: of a family in `families.FAMILIES`, from transformers. processor: its own, or its tokenizer: needed for a
        `question`, and for Qwen3-VL's time stamps when frames are merged.
    budget: tokens that the films of one prompt may take, or seconds ("5 seconds") in which the language model reads
        them. kernel: (frames, rows, columns) of a window instead; (1, 1, 1) changes nothing.
    question: what to look for, one or one a prompt; by default all words of the prompt.
    mode: "local" follows the guide in every window, "ppllava" is the released double softmax, "uniform" averages.
    guide: a `PromptGuide`, with `frames`: for each film a tensor (t, 3, S, S) prepared for it (a second pass through a
        tower); or a function of the film's number and its (T, H, W) that gives scores; by default the model's own
        words (`own_scores`), which cost nothing. scores: for each film (t, h, w), when they are known already.
    `generate` gives sequences that begin with the prompt as it was given, and counts `max_length` with that prompt.
    Raises UserError for a model of another family, a second `pool` on a model, and inputs that do not fit.
    """
    family = family_of(model)
    if model in _HELD:
        raise UserError("this model is pooled already; one pool at a time")
    triple = (kernel, kernel, kernel) if isinstance(kernel, int) else kernel
    if triple is not None and (len(triple) != 3 or min(triple) < 1):
        raise UserError(f"a kernel is three whole numbers from 1 on, {kernel} given")
    asked = [question] if isinstance(question, str) else question
    tokenizer = getattr(processor, "tokenizer", processor)
    plan = parse_budget(budget)
    pooling = Pooling(model, family, plan, WeightMode(mode), triple, tokenizer, asked, guide, frames, scores)
    names = [name for name in ("forward", "generate") if hasattr(model, name)]
    former = {name: vars(model)[name] for name in names if name in vars(model)}
    deltas = getattr(pooling.inner, "rope_deltas", None)
    made = {"forward": _forward(pooling, model.forward)}
    if "generate" in names:
        made["generate"] = _generate(pooling, model.generate)
    _HELD.add(model)
    try:
        for name, function in made.items():
            setattr(model, name, function)
        yield pooling
    finally:
        for name in made:
            if name in former:
                setattr(model, name, former[name])
            else:
                delattr(model, name)
        if hasattr(pooling.inner, "rope_deltas"):
            pooling.inner.rope_deltas = deltas
        _HELD.discard(model)


def _forward(pooling: Pooling, stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def forward(input_ids: Tensor | None = None, *args: Any, **inputs: Any) -> Any:
        if args:
            raise UserError("within pool give the model its inputs by name")
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        return stock(**pooling.prepare(inputs))

    return forward


def _generate(pooling: Pooling, stock: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(stock)
    def generate(inputs: Tensor | None = None, *args: Any, **given: Any) -> Any:
        if args:
            raise UserError("within pool give generate its settings by name")
        if inputs is not None:
            given["input_ids"] = inputs
        with torch.no_grad():
            made = pooling.prepare(given)
        if made is given:
            return stock(**given)
        asked, short = given["input_ids"], made["input_ids"]
        for name in ("max_length", "min_length"):
            if made.get(name) is not None:
                made[name] = max(made[name] - asked.shape[1] + short.shape[1], 0)
        found = stock(**made)
        sequences = found if isinstance(found, Tensor) else found.sequences
        first = asked.repeat_interleave(len(sequences) // len(asked), 0)
        sequences = torch.cat([first, sequences[:, short.shape[1] :]], 1)
        if isinstance(found, Tensor):
            return sequences
        found.sequences = sequences
        return found

    return generate
