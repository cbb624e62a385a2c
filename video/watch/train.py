"""``longtake train watch``: the head of the small tower, from films with captions.

The picture net stays as ImageNet made it. A film is seven of its pictures' features, of which a step takes a run of
two to seven; mean and deviation go through the head to the space of sentence vectors, and a contrastive loss (Radford
et al. 2021, CLIP) draws each film to the captions that it was given, films of one caption counting as one. Stills (one
or two views of a drawing, ``--pictures``) are three in seven of a step; to half of those a moving film lends its
deviation, so that what does not move is no sign of what it shows. Films of ``*_val.zip`` are never trained on: with
them is found how much of a score the head has beside the open words of ConSE.
Shape legend: N films, B of a batch, S pictures of a film (7), F features (1280), W wordings, E sentence vectors (384).

    longtake train watch --data DATA --pictures pictures --prepare words.zip
    longtake train watch --prepared words.zip --out runs/words
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.video.watch.tower import CLASSES, CONFIG, LIKELIEST, WIDTH, Head, class_words, feature_net, prepared
from torch import Tensor
from torch.nn import functional

RECIPE = "watch"
PICTURES = 7
STEPS, BATCH, RATE = 1200, 448, 1.5e-3
INNER = 768
JITTER = 0.1  # deviation of what is added to the features, in theirs
STILLS, LENT = 3 / 7, 0.5  # share of a step that is stills, and share of those to which a film lends its deviation
SHARPNESS = 1.0  # of the class probabilities
KNOWN, BEYOND = 0.99, 1.25  # share of its own films that are familiar to a head, and how much farther is all strange
SHARES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass
class Films:
    """features (N, S, F) float16; captions: number (N,) of each film's caption; wordings: (N, W) places in ``vectors``
    (V, E), unit length, a film's own ones repeated to W; held_out (N,) bool; names of the captions; corpora (N,)."""

    features: np.ndarray
    captions: np.ndarray
    wordings: np.ndarray
    vectors: np.ndarray
    held_out: np.ndarray
    names: list[str]
    corpora: list[str]

    @property
    def still(self) -> np.ndarray:
        """(N,) bool: films of at most two pictures that differ."""
        turns: np.ndarray = (self.features[:, 1:] != self.features[:, :-1]).any(2).sum(1)
        return turns <= 1

    def part(self, held_out: bool) -> np.ndarray:
        """Places of the films that are, or are not, held out."""
        found: np.ndarray = np.flatnonzero(self.held_out == held_out)
        return found


def captioned(data: Path) -> list[tuple[str, bool, dict[str, Any], np.ndarray]]:
    """(corpus, held out, row of its index, pictures uint8: S of them, or all of a shorter film) of each film in
    ``*_train.zip`` and ``*_val.zip`` that has a caption. Raises UserError when there is none."""
    from longtake.video.data import _index, _open, read_clip

    found = []
    for path in sorted([*data.glob("*_train.zip"), *data.glob("*_val.zip")]):
        with _open(path) as archive:
            for row in _index(archive):
                if "caption" in row:
                    frames = read_clip(archive.read(row["file"]))
                    picked = frames[_spread(len(frames))] if len(frames) > PICTURES else frames
                    found.append((path.stem.rpartition("_")[0], path.stem.endswith("_val"), row, picked))
    if not found:
        raise UserError(f"{data} holds no *_train.zip of films with captions")
    return found


def _spread(count: int) -> np.ndarray:
    """Places of S pictures, evenly over so many."""
    return np.linspace(0, count - 1, PICTURES).round().astype(int)


def load_films(*folders: Path) -> Films:
    """Look at every film of the folders and read every wording, on the training's device."""
    from longtake.text import SentenceEncoder
    from longtake.train import training_device
    from tqdm import tqdm

    rows = [row for folder in folders for row in captioned(folder)]
    device = training_device()
    net = feature_net().to(device)
    features = np.zeros((len(rows), PICTURES, WIDTH), np.float16)
    for place, (_, _, _, frames) in enumerate(tqdm(rows, desc="looking", unit="film")):
        with torch.inference_mode():
            looked = net.extract_features(prepared(frames).to(device)).mean((2, 3)).half().cpu().numpy()
        features[place] = looked[_spread(len(looked))]
    said = [list(dict.fromkeys([row["caption"], *row.get("wordings", [])])) for _, _, row, _ in rows]
    texts = sorted({text for wordings in said for text in wordings})
    place_of = {text: place for place, text in enumerate(texts)}
    encoder = SentenceEncoder()
    vectors = torch.cat([encoder.encode([text])[:, 0] for text in tqdm(texts, desc="reading", unit="text")])
    names = sorted({row["caption"] for _, _, row, _ in rows})
    most = max(map(len, said))
    return Films(
        features,
        np.array([names.index(row["caption"]) for _, _, row, _ in rows]),
        np.array([[place_of[wordings[one % len(wordings)]] for one in range(most)] for wordings in said]),
        functional.normalize(vectors, dim=-1).numpy(),
        np.array([held for _, held, _, _ in rows]),
        names,
        [corpus for corpus, _, _, _ in rows],
    )


def read_films(path: Path) -> Films:
    """What ``--prepare`` wrote. Raises UserError."""
    from longtake.prepared import load

    arrays, facts = load(path, RECIPE)
    return Films(**arrays, names=facts["names"], corpora=facts["corpora"])


def save_films(path: Path, films: Films) -> Path:
    """Write what ``read_films`` reads."""
    from longtake.prepared import save

    names = ("features", "captions", "wordings", "vectors", "held_out")
    arrays = {name: getattr(films, name) for name in names}
    return save(path, RECIPE, arrays, {"names": films.names, "corpora": films.corpora})


def pooled(features: Tensor, kept: Tensor) -> Tensor:
    """Mean and deviation (B, 2 F) of the pictures (B, S, F) that are kept, (B, S) bool."""
    share = kept[..., None] / kept.sum(1)[:, None, None]
    mean = (features * share).sum(1)
    spread = ((features - mean[:, None]).square() * kept[..., None]).sum(1) / (kept.sum(1) - 1).clamp(min=1)[:, None]
    return torch.cat([mean, spread.sqrt()], -1)


def contrast(seen: Tensor, said: Tensor, captions: Tensor, heat: Tensor) -> Tensor:
    """The loss of vectors of films and texts, (B, E) each; films of one caption share their texts."""
    logits = heat.exp() * seen @ said.T
    same = (captions[:, None] == captions[None]).float()
    same = same / same.sum(1, keepdim=True)
    return -(same * logits.log_softmax(1)).sum(1).mean() - (same * logits.log_softmax(0)).sum(0).mean()


class _Learner(torch.nn.Module):
    """The head and the heat of its loss."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.heat = torch.nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor, said: Tensor, captions: Tensor) -> Tensor:
        return contrast(self.head(x), said, captions, self.heat)


def shares_of(films: Films, rows: np.ndarray, batch: int) -> list[tuple[np.ndarray, int]]:
    """(places among ``rows``, how many of a step) of each corpus's moving films, all as many, and of the stills."""
    still, corpora = films.still[rows], np.array([films.corpora[row] for row in rows])
    stills = np.flatnonzero(still)
    taken = round(STILLS * batch) if 0 < len(stills) < len(rows) else batch * bool(len(stills))
    names = sorted(set(corpora[~still]))
    borders = [round((batch - taken) * place / max(1, len(names))) for place in range(len(names) + 1)]
    parts = [np.flatnonzero(~still & (corpora == name)) for name in names]
    return [*zip(parts, np.diff(borders).tolist(), strict=True), (stills, taken)]


def train_head(films: Films, folder: Path, settings: Any, *, seed: int, batch: int = BATCH) -> Head:
    """Train (or resume) the head; the record has the share of held-out films whose caption is found among theirs."""
    from longtake.graphs import Split
    from longtake.train import Dice, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    train = films.part(False)
    features = torch.from_numpy(films.features[train]).to(device)
    captions = torch.from_numpy(films.captions[train]).to(device)
    wordings = torch.from_numpy(films.wordings[train]).to(device)
    vectors = torch.from_numpy(films.vectors).to(device)
    groups = [(torch.from_numpy(part).to(device), count) for part, count in shares_of(films, train, batch)]
    taken = groups[-1][1]  # stills
    moving = torch.cat([part for part, _ in groups[:-1]] or [groups[-1][0][:0]])
    head = Head(INNER).to(device)
    whole = pooled(features.float(), torch.ones(features.shape[:2], dtype=torch.bool, device=device))
    head.mean.copy_(whole.mean(0))
    head.deviation.copy_(whole.std(0) + 1e-3)
    learner = _Learner(head)

    def draw(step: int) -> tuple[Tensor, ...]:
        torch.manual_seed(step)  # of dropout, so that a resumed training drops the same
        dice = Dice(seed + 1, step, device)
        rows = torch.cat([part[dice.integers(len(part), count)] for part, count in groups if count])
        length = 2 + dice.integers(PICTURES - 1, batch)
        first = (dice.uniform(batch) * (PICTURES - length + 1)).long()
        place = torch.arange(PICTURES, device=device)
        kept = (place >= first[:, None]) & (place < (first + length)[:, None])
        x = pooled(features[rows].float(), kept)
        if taken and len(moving):
            lent = whole[moving[dice.integers(len(moving), taken)], WIDTH:]
            lends = dice.uniform(taken)[:, None] < LENT
            x[-taken:, WIDTH:] = torch.where(lends, lent, x[-taken:, WIDTH:])
        x = x + JITTER * head.deviation * dice.normal(*x.shape)
        told = wordings[rows].gather(1, dice.integers(wordings.shape[1], batch)[:, None])[:, 0]
        return x, vectors[told], captions[rows]

    def value(network: Any, *tensors: Tensor) -> Tensor:
        found: Tensor = network(*tensors)
        return found

    def judge(network: Any, step: int) -> dict[str, float]:
        return {
            f"found_{corpus}": round(_named(network.head, films, corpus), 4)
            for corpus in sorted(set(films.corpora))
            if any(films.held_out[place] and films.corpora[place] == corpus for place in range(len(films.corpora)))
        }

    fit(learner, Split(draw, value), settings, folder, name="head", on_checkpoint=judge)
    return head.eval().requires_grad_(False)


def _named(head: Head, films: Films, corpus: str) -> float:
    """Share of a corpus's held-out films whose own caption is the nearest of their captions."""
    rows = np.array([place for place in films.part(True) if films.corpora[place] == corpus])
    seen = _seen(head, films, rows)
    captions = np.unique(films.captions[rows])
    texts = _texts(films, captions)
    best = captions[(seen @ texts.T).argmax(1).numpy()]
    return float((best == films.captions[rows]).mean())


@torch.no_grad()
def _seen(head: Head, films: Films, rows: np.ndarray) -> Tensor:
    """Unit vectors of films by the head, (n, E), on the CPU."""
    device = head.first.weight.device
    was = head.training
    head.eval()
    features = torch.from_numpy(films.features[rows]).float().to(device)
    kept = torch.ones(features.shape[:2], dtype=torch.bool, device=device)
    found: Tensor = head(pooled(features, kept)).float().cpu()
    head.train(was)
    return found


def _texts(films: Films, captions: np.ndarray) -> Tensor:
    """Unit vectors (n, E) of captions, by number."""
    first = [int(films.wordings[np.flatnonzero(films.captions == caption)[0], 0]) for caption in captions]
    return torch.from_numpy(films.vectors[first])


def balance(head: Head, films: Films) -> dict[str, float]:
    """The share of a score that the head has, with which the held-out emoji, whose subjects no film showed it, are
    found most often among all films that move by their captions; the scores of what is there and of what is not; and
    how far from the head's mean its own films lie, which is what `SmallTower.head_share` goes by."""
    from longtake.text import SentenceEncoder

    net = feature_net()
    everything = np.flatnonzero(~films.still)
    seen = _seen(head, films, everything)
    with torch.inference_mode():
        logits = net.classifier(torch.from_numpy(films.features[everything].astype(np.float32)).mean(1))
        shares = functional.softmax(SHARPNESS * logits, dim=-1)
        best, which = shares.topk(LIKELIEST, dim=-1)
        words = functional.normalize((best[..., None] * class_words(SentenceEncoder())[which]).sum(-2), dim=-1)
    asked = np.unique(films.captions[films.part(True)])
    texts = _texts(films, asked)
    own = films.captions[everything][None] == asked[:, None]
    found: dict[float, float] = {}
    for share in SHARES:
        scores = share * texts @ seen.T + (1 - share) * texts @ words.T
        order = scores.argsort(1, descending=True)[:, :3].numpy()
        found[share] = float(np.mean([own[place][order[place]].any() for place in range(len(asked))]))
    share = max(SHARES, key=lambda one: (found[one], one))
    likeness = (share * texts @ seen.T + (1 - share) * texts @ words.T).numpy()
    floor, top = float(np.quantile(likeness[~own], 0.9)), float(np.quantile(likeness[own], 0.75))
    print("share of the head: found among the first three", {one: round(value, 3) for one, value in found.items()})
    trained = torch.from_numpy(films.features[films.part(False)]).float()
    far = head.distance(torch.cat([trained.mean(1), torch.zeros(len(trained), WIDTH)], 1))
    familiar = float(np.quantile(far.numpy(), KNOWN))
    known = {"familiar": familiar, "strange": BEYOND * familiar}
    return {"head_share": share, "floor": floor, "top": top, "sharpness": SHARPNESS, **known}


def export(head: Head, told: dict[str, float], folder: Path) -> Path:
    """Write the prior's files. Returns the folder."""
    from longtake.journal import atomic_path, write_tensors
    from longtake.text import SentenceEncoder
    from longtake.weights import eight_bits, file_hash

    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "head.safetensors", eight_bits(head.state_dict()))
    mark = file_hash(folder / "head.safetensors")
    write_tensors(folder / CLASSES, eight_bits({"weight": class_words(SentenceEncoder())}))
    with atomic_path(folder / CONFIG) as partial:
        partial.write_text(json.dumps({**told, "inner": INNER, "mark": mark}, indent=1) + "\n")
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train watch``."""
    from longtake.train import add_arguments as add_schedule
    from longtake.train import add_sources

    add_sources(parser, "folder with films and captions: kaykit_train.zip, emoji_train.zip, and their _val beside them")
    parser.add_argument(
        "--pictures", type=Path, nargs="+", default=[], help="with --data: further folders of such zips (stills)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/train-watch"), help="checkpoints, record, the prior")
    parser.add_argument("--steps", type=int, help=f"default {STEPS}; with --minutes as many as they give")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"films of a step (default {BATCH})")
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train the head, resuming what is there, and export the prior to ``--out``/prior."""
    from longtake.train import Settings, count, schedule

    if args.prepare is not None and args.data is None:
        raise UserError("--prepare writes what --data holds: give --data, not --prepared")
    if args.prepare is not None:
        print(f"prepared data written to {save_films(args.prepare, load_films(args.data, *args.pictures))}")
        return 0
    if args.prepared is not None and args.pictures:
        raise UserError("--pictures are looked at with --data: --prepared holds what was looked at")
    films = read_films(args.prepared) if args.prepared is not None else load_films(args.data, *args.pictures)
    settings = Settings(count(args.steps, args, STEPS), RATE, warmup=100, ema=0.995, **schedule(args))
    head = train_head(films, args.out, settings, seed=args.seed, batch=args.batch)
    print(f"prior written to {export(head, balance(head.cpu(), films), args.out / 'prior')}")
    return 0
