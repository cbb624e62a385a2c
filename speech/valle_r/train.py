"""The recipe of the small VALL-E R: a codec over mels, then the two networks over its codes.

The codec learns crops of all mels; then every utterance becomes codes, its labels are projected onto the merged frames,
and pairs of utterances of one voice, the first of them the prompt, teach both networks. Everything is on the device;
batches have a few fixed shapes, so that a GPU can record the steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from longtake import train as training
from longtake.graphs import Split
from longtake.journal import atomic_path
from longtake.speech.codec.mels import MelCodec
from longtake.speech.mel import FRAMES_A_SECOND
from longtake.speech.valle_r import ar as first_layer
from longtake.speech.valle_r import nar as other_layers
from longtake.speech.valle_r.aligner import Aligner
from longtake.speech.valle_r.ar import AR
from longtake.speech.valle_r.corpus import Bucket, Coded, Flat, buckets
from longtake.speech.valle_r.decode import Prompt
from longtake.speech.valle_r.nar import NAR
from longtake.speech.valle_r.prior import ValleR
from longtake.train import ENDLESS, Dice, Settings, batch_generator

CODEC_SHARE, AR_SHARE, NAR_SHARE = 0.1, 0.45, 0.45  # of the minutes
CODEC_RATE, AR_RATE, NAR_RATE = 1.5e-3, 1.5e-3, 1.5e-3
WARMUP, EMA = 150, 0.998
CROP = 96  # frames of the codec's crops
SPREAD = 0.4  # of what is asked for: how much of it goes to codes near the right one
MISHEARD, MISHEARD_LATER = 0.25, 0.1  # at most this share of the codes that a row of sound carries is random
WAYS = ((0, 0.0), (1, 0.15), (0, -0.25))  # how each utterance is encoded to train from: first frame, loudness
PAIRS_EACH = 12  # prompts drawn for each utterance
CODEC_MODEL: dict[str, Any] = {"layers": 4}
AR_MODEL: dict[str, Any] = {
    "width": 256,
    "heads": 4,
    "layers": 5,
    "feedforward": 1024,
    "pointer": "stay_go",
    "lead": 1,
    "around": 1,
    "place": True,
    "dwell": 32,
    "dropout": 0.15,
}
NAR_MODEL: dict[str, Any] = {
    "width": 192,
    "heads": 4,
    "layers": 5,
    "feedforward": 768,
    "around": 1,
    "place": True,
    "tie": "same",
    "stage": 16,
    "scale": 14.0,
    "local": 3,
}


@dataclass(frozen=True)
class Amounts:
    """How much a step takes: crops of the codec, places (text and merged frames) of AR and NAR."""

    crops: int
    ar_places: int
    nar_places: int

    @classmethod
    def on(cls, device: torch.device) -> Amounts:
        """What suits a device."""
        return cls(24, 2048, 2048) if device.type == "cpu" else cls(192, 32768, 16384)


# ------------------------------------------------------------------------------------------------------------ codec


def train_codec(
    seen: Flat,
    unseen: Flat | None,
    folder: Path,
    settings: Settings,
    *,
    rows: int,
    seed: int,
    mean: float,
    deviation: float,
) -> MelCodec:
    """Train (or resume) the codec on crops of mels that are normalised by ``mean`` and ``deviation``.

    The record has the mean error of held-out log mels with all codebooks, and with the merged one alone.
    """
    torch.manual_seed(seed)
    device = training.training_device()
    model = MelCodec(mean=mean, deviation=deviation, **CODEC_MODEL)
    layers, entries = model.layers, model.entries
    seen = seen.to(device)

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        dice = Dice(seed, step, device)
        mel = seen.crops(rows, CROP, dice)
        some = dice.uniform(rows) < 0.5
        used = torch.where(some, 1 + dice.integers(layers, rows), layers)
        return mel, used, dice.integers(model.vectors(rows, CROP), layers, entries)

    def value(network: Any, mel: torch.Tensor, used: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        return network(mel, used, picks)

    def judge(network: Any, step: int) -> dict[str, float]:
        if unseen is None:
            return {}
        found = codec_errors(network, unseen, (1, layers))
        return {f"error_{count}": round(error, 4) for count, error in found.items()}

    training.fit(model, Split(drawn, value), settings, folder, name="codec", on_checkpoint=judge)
    trained = MelCodec(**model.config).to(device).eval()  # without the half precision that training wraps around a net
    trained.load_state_dict(model.state_dict())
    return trained


@torch.no_grad()
def codec_errors(codec: MelCodec, flat: Flat, counts: Sequence[int]) -> dict[int, float]:
    """Mean absolute error of log mels by how many codebooks they are decoded from; utterances of up to 512 frames."""
    chosen = torch.arange(min(len(flat.frames), 64), device=flat.frames.device)
    mel = flat.cut(chosen, torch.zeros_like(chosen), 512) * codec.deviation + codec.mean
    frames = flat.frames[chosen].clamp_max(512)
    inside = torch.arange(512, device=mel.device) < frames[:, None]
    codes = codec.encode(mel.transpose(1, 2), frames)
    found = {}
    for count in counts:
        gap = (codec.decode(codes[:, :count]).transpose(1, 2) - mel).abs().mean(2)
        found[count] = float((gap * inside).sum() / inside.sum())
    return found


# ---------------------------------------------------------------------------------------------------- both networks


def pick_bucket(found: Sequence[Bucket], seed: int, step: int) -> Bucket:
    """The bucket of a step."""
    return found[int(batch_generator(seed, step).integers(len(found)))]


def chosen_pairs(bucket: Bucket, rows: int, dice: Dice) -> torch.Tensor:
    """Pairs (rows, 2) of a bucket."""
    return bucket.pairs[dice.integers(len(bucket.pairs), rows)]


def neighbours(books: torch.Tensor) -> torch.Tensor:
    """What is asked for instead of each code (D, K, K) of codebooks (D, K, c): mostly itself, the rest spread over the
    entries by their distance, in units of the distance to the nearest."""
    gap = torch.cdist(books.float(), books.float()).square()
    itself = torch.eye(books.shape[1], device=books.device)
    nearest = (gap + 1e9 * itself).amin(-1).mean(-1).clamp_min(1e-8)
    spread = (-gap / nearest[:, None, None]).softmax(-1)
    return (1 - SPREAD) * itself + SPREAD * spread


def misheard(codes: torch.Tensor, entries: int, most: float, dice: Dice) -> torch.Tensor:
    """Codes (B, ...) of which a share, up to ``most``, another one for each row, is replaced by random ones."""
    share = most * dice.uniform(len(codes), *[1] * (codes.ndim - 1))
    return torch.where(dice.uniform(*codes.shape) < share, dice.integers(entries, *codes.shape), codes)


def train_ar(
    seen: Coded,
    unseen: Coded | None,
    folder: Path,
    settings: Settings,
    *,
    places: int,
    seed: int,
    model: AR | None = None,
    books: torch.Tensor | None = None,
) -> AR:
    """Train (or resume) the autoregressive network. The record has the shares of held-out codes and moves it names.

    books: codebooks (D, K, c), so that a code near the right one costs less; None: all others cost the same.
    """
    torch.manual_seed(seed)
    device = training.training_device()
    model = model or AR.of(AR_MODEL)
    soft = None if books is None else F.pad(neighbours(books[:1])[0], (0, 1, 0, 1)).to(device)
    if soft is not None:
        soft[-1, -1].fill_(1.0)  # the end is the end
    found, seen = _pairs(seen, seed, device), seen.to(device)

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        bucket = pick_bucket(found, seed + 1, step)
        torch.manual_seed(step)  # of dropout, so that a resumed training drops the same
        dice = Dice(seed + 1, step, device)
        pairs = chosen_pairs(bucket, bucket.rows(places), dice)
        joined = seen.join(pairs, bucket.symbols, bucket.frames)
        codes = joined.codes[:, 0, :: seen.merge]
        heard = misheard(codes, model.entries, MISHEARD, dice)
        return joined.text, joined.text_lengths, codes, joined.labels, joined.lengths, heard

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        return first_layer.objective(network, model, soft, *tensors)

    def judge(network: Any, step: int) -> dict[str, float]:
        return {} if unseen is None else ar_figures(model, unseen)

    training.fit(model, Split(drawn, value), settings, folder, name="ar", on_checkpoint=judge)
    trained = AR.of(model.config).to(device).eval()
    trained.load_state_dict(model.state_dict())
    return trained


@torch.no_grad()
def ar_figures(model: AR, coded: Coded) -> dict[str, float]:
    """On held-out pairs: the share of first codes and of moves that are named, and the loss of each."""
    joined = _held_out(coded)
    codes = joined.codes[:, 0, :: coded.merge]
    told = first_layer.lesson(model, joined.text, joined.text_lengths, codes, joined.labels, joined.lengths)
    said, moved = model(joined.text, told["codes"], told["pointer"], joined.text_lengths, joined.lengths)
    assert moved is not None
    target, move = told["code_target"], told["move_target"]
    code_loss = F.cross_entropy(said.float().flatten(0, 1), target.flatten(), ignore_index=first_layer.IGNORED)
    move_loss = F.cross_entropy(moved.float().flatten(0, 1), move.flatten(), ignore_index=first_layer.IGNORED)
    return {
        "code_accuracy": round(float(first_layer.accuracy(said, target)), 4),
        "move_accuracy": round(float(first_layer.accuracy(moved, move)), 4),
        "code_loss": round(float(code_loss), 4),
        "move_loss": round(float(move_loss), 4),
    }


def train_nar(
    seen: Coded,
    unseen: Coded | None,
    folder: Path,
    settings: Settings,
    *,
    places: int,
    seed: int,
    model: NAR | None = None,
    books: torch.Tensor | None = None,
) -> NAR:
    """Train (or resume) the network of the other layers. The record has the share of held-out codes it names.

    books: as for ``train_ar``.
    """
    torch.manual_seed(seed)
    device = training.training_device()
    model = model or NAR.of({**NAR_MODEL, "layers_of_codes": seen.codes.shape[1]})
    soft = None
    if books is not None:
        other_layers.begin_from(model, books.to(training.device_of(model)))
        soft, books = neighbours(books[1:]).to(device), books.to(device)
    found, seen = _pairs(seen, seed, device), seen.to(device)
    learned: Any = partial(other_layers.objective, books=books)
    stages = model.count - 1

    def drawn(step: int) -> tuple[torch.Tensor, ...]:
        bucket = pick_bucket(found, seed + 1, step)
        torch.manual_seed(step)
        dice = Dice(seed + 1, step, device)
        rows = bucket.rows(places)
        joined = seen.join(chosen_pairs(bucket, rows, dice), bucket.symbols, bucket.frames)
        pointer = joined.labels.repeat_interleave(seen.merge, 1)
        stage = (
            (dice.strata(rows) ** 2 * stages).long().clamp_max(stages - 1)
        )  # the first ones most often: they carry most
        lengths, prompt = joined.lengths * seen.merge, joined.prompt * seen.merge
        heard = misheard(joined.codes, model.entries, MISHEARD_LATER, dice)
        return joined.text, joined.text_lengths, joined.codes, pointer, lengths, prompt, stage, heard

    def value(network: Any, *tensors: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = learned(network, soft, *tensors)
        return made

    def judge(network: Any, step: int) -> dict[str, float]:
        if unseen is None:
            return {}
        found: dict[str, float] = {f"accuracy_{layer}": share for layer, share in nar_figures(model, unseen).items()}
        return found if books is None else found | {"missed": missed_by(model, unseen, books)}

    training.fit(model, Split(drawn, value), settings, folder, name="nar", on_checkpoint=judge)
    trained = NAR.of(model.config).to(device).eval()
    trained.load_state_dict(model.state_dict())
    return trained


@torch.no_grad()
def nar_figures(model: NAR, coded: Coded) -> dict[int, float]:
    """On held-out pairs: the share of codes of each layer, 2 to D, that are named when those before are known."""
    joined = _held_out(coded, rows=16)
    merge = coded.merge
    pointer = joined.labels.repeat_interleave(merge, 1)
    lengths, prompt = joined.lengths * merge, joined.prompt * merge
    found = {}
    for stage in range(model.count - 1):
        asked = torch.full_like(lengths, stage)
        said = model(joined.text, joined.codes, pointer, asked, prompt, joined.text_lengths, lengths)
        target = other_layers.targets(joined.codes, asked, prompt, lengths)
        found[stage + 2] = round(float(first_layer.accuracy(said, target)), 4)
    return found


@torch.no_grad()
def missed_by(model: NAR, coded: Coded, books: torch.Tensor) -> float:
    """``longtake.speech.valle_r.nar.missed`` of the second layer on held-out pairs: 1 says nothing, 0 everything."""
    joined = _held_out(coded, rows=16)
    pointer, lengths = joined.labels.repeat_interleave(coded.merge, 1), joined.lengths * coded.merge
    asked, prompt = torch.zeros_like(lengths), joined.prompt * coded.merge
    said = model(joined.text, joined.codes, pointer, asked, prompt, joined.text_lengths, lengths)
    target = other_layers.targets(joined.codes, asked, prompt, lengths)
    books = books.to(said.device)
    return round(float(other_layers.missed(said, target, books[1:2].expand(len(asked), -1, -1))), 4)


@torch.no_grad()
def detail_errors(model: NAR, codec: MelCodec, coded: Coded, rows: int = 16) -> dict[str, float]:
    """Mean absolute difference of log mels to those of all true codes, on held-out targets whose first codes are known:
    of the first codes alone, with the other layers' likeliest codes, and with what is expected of them."""
    joined = _held_out(coded, rows)
    found = {"first": 0.0, "codes": 0.0, "expected": 0.0}
    count = len(joined.lengths)
    for row in range(count):
        end, prompt = int(joined.lengths[row]) * coded.merge, int(joined.prompt[row]) * coded.merge
        text, true = joined.text[row, : int(joined.text_lengths[row])], joined.codes[row, :, :end]
        pointer = joined.labels[row].repeat_interleave(coded.merge)[:end]
        codes, latent = model.expect(text, true, pointer, prompt, codec.books)
        first = codec.decode(true[None, :1])
        made = {"first": first, "codes": codec.decode(codes[None]), "expected": codec.decode_latent(latent[None])}
        want = codec.decode(true[None])[..., prompt:]
        for name, mel in made.items():
            found[name] += float((mel[..., prompt:] - want).abs().mean()) / count
    return {name: round(value, 4) for name, value in found.items()}


def _pairs(coded: Coded, seed: int, device: torch.device) -> list[Bucket]:
    """The buckets of a training, on its device."""
    here = coded.to("cpu")
    found = buckets(here, here.pairs(PAIRS_EACH, seed))
    return [replace(bucket, pairs=bucket.pairs.to(device)) for bucket in found]


def _held_out(coded: Coded, rows: int = 32) -> Any:
    pairs = coded.pairs(1, 0)
    pairs = pairs[torch.linspace(0, len(pairs) - 1, min(rows, len(pairs)), device=pairs.device).long()]
    symbols, frames = coded.counts[pairs].sum(1), coded.frames[pairs].sum(1)
    return coded.join(pairs, int(symbols.max()), int(frames.max()))


def write_figures(folder: Path, figures: dict[str, Any]) -> Path:
    """Write what the training came to, as ``folder``/valle_r.json."""
    path = folder / "valle_r.json"
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(figures, indent=1) + "\n")
    return path


# ------------------------------------------------------------------------------------------------------------ whole


def choose_voices(
    coded: Coded, names: Sequence[str], seconds: float = 4.0, rate: float = FRAMES_A_SECOND
) -> dict[str, Prompt]:
    """One utterance of each voice to speak with: the one nearest to ``seconds``. rate: frames a second, full rate."""
    length = coded.frames.double().cpu() * coded.merge / rate
    voice = coded.voice.cpu()
    found = {}
    for number in voice.unique().tolist():
        gap = torch.where(voice == number, (length - seconds).abs(), torch.inf)
        row = int(gap.argmin())
        frames, count = int(coded.frames[row]), int(coded.counts[row])
        found[names[number]] = Prompt(
            coded.text[row, :count].long().cpu(),
            coded.codes[row, :, : frames * coded.merge].long().cpu(),
            coded.labels[row, :frames].long().cpu(),
        )
    return found


def train(
    source: Any,
    out: Path,
    told: Callable[[float], dict[str, Any]],
    *,
    seed: int = 0,
    steps: tuple[int, int, int] = (1200, 3000, 2000),
    amounts: Amounts | None = None,
) -> Path:
    """Train (or resume) codec, AR and NAR and write the prior to ``out``/prior and figures to ``out``/valle_r.json.

    source: ``longtake.speech.data.Prepared``. told: keywords of ``Settings`` for a share of the minutes, as
    ``longtake.train.schedule`` makes them. steps: of the three, where no minutes are given. Returns the prior's folder.
    """
    from longtake.speech import data

    device = training.training_device()
    amounts = amounts or Amounts.on(device)
    start = time.monotonic()
    corpus = data.Corpus.of(source, "train", device)
    others = sorted({one.voice for one in source.utterances if one.split == "val"})
    held_out = data.Corpus.of(source, "val", device, voices=others) if others else None
    seen, unseen = Flat.of(corpus), None if held_out is None else Flat.of(held_out)
    figures: dict[str, Any] = {"seconds": {"read": round(time.monotonic() - start, 1)}}

    def settings(share: float, count: int, rate: float) -> Settings:
        words = told(share)
        return Settings(ENDLESS if words.get("minutes", 0) > 0 else count, rate, warmup=WARMUP, ema=EMA, **words)

    codec = train_codec(
        seen,
        unseen,
        out,
        settings(CODEC_SHARE, steps[0], CODEC_RATE),
        rows=amounts.crops,
        seed=seed,
        mean=data.MEL_MEAN,
        deviation=data.MEL_DEVIATION,
    )
    between = time.monotonic()
    spoken = Coded.of(seen, codec)
    varied = Coded.heard(seen, codec, WAYS)
    heard = None if unseen is None else Coded.of(unseen, codec)
    figures["left_out"] = len(seen.frames) - len(spoken.rows)
    figures["seconds"]["encode"] = round(time.monotonic() - between, 1)
    common: dict[str, Any] = {"seed": seed, "books": codec.books}
    ar = train_ar(varied, heard, out, settings(AR_SHARE, steps[1], AR_RATE), places=amounts.ar_places, **common)
    nar = train_nar(varied, heard, out, settings(NAR_SHARE, steps[2], NAR_RATE), places=amounts.nar_places, **common)
    if unseen is not None and heard is not None:
        errors = codec_errors(codec, unseen, range(1, codec.layers + 1))
        figures["codec_error_by_codebooks"] = {count: round(error, 4) for count, error in errors.items()}
        figures["ar"] = ar_figures(ar, heard)
        figures["nar_accuracy"] = nar_figures(nar, heard)
        figures["error_by_detail"] = detail_errors(nar, codec, heard)
    model = ValleR(codec, ar, nar, choose_voices(spoken, corpus.voices), Aligner.fit(seen, ar.symbols))
    folder = model.save(out / "prior")
    figures["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
    figures["seconds"]["all"] = round(time.monotonic() - start, 1)
    write_figures(out, figures)
    return folder
