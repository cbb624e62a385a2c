"""The judge of generated video: a small classifier of 16-frame clips, trained on real clips alone.

It never sees an output of the prior that it judges, nor that prior's autoencoder: soft focus, noise, colour casts and
shifts come from augmentation instead, so that one evaluator can stand beside any prior. Its own accuracy on real
clips is part of every table. Of KayKit it learns the character and the action apart, so that it knows pairs that it
never saw. Legend: B clips, n frames looked at, H W pixels, D embedding width, P parts of a label.

    evaluator, report = load_or_train(clips, Path("runs/evaluate-video"))
    guess, embedding = evaluator.classify(windows)       # uint8 (B, 16, 64, 64, 3) -> (B,) and (B, D)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from longtake.errors import UserError
from longtake.evaluation import cached_judge
from longtake.video.data import Clip
from longtake.video.metrics import WINDOW
from torch import nn

LATE = 5  # frames that the last window of an action may reach beyond its end
LOOK_AT = tuple(range(0, WINDOW - 1, 3))  # each of these frames, and its change to the next one
KEPT_OUT = 4  # of a subject with a single clip, windows that start at every fourth frame are kept out of training
_FORMAT = 2
PARTS = ("character", "action")  # of a KayKit label


@dataclass(frozen=True)
class EvaluatorSettings:
    """How the evaluator is trained: ``batch`` clips a step; ``widths`` of its three stages; ``embedding`` D."""

    steps: int = 600
    batch: int = 24
    learning_rate: float = 2e-3
    widths: tuple[int, int, int] = (32, 64, 128)
    embedding: int = 128
    precision: str = "no"
    seed: int = 0


class ClipNet(nn.Module):
    """Frames and their changes through a 2-D convolutional net, mean over time, embedding, logits."""

    def __init__(self, outputs: int, widths: Sequence[int], embedding: int) -> None:
        super().__init__()
        low, middle, high = widths
        self.features = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(24, low, 3, padding=1),
            nn.GroupNorm(4, low),
            nn.ReLU(),
            nn.Conv2d(low, middle, 3, stride=2, padding=1),
            nn.GroupNorm(8, middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 3, padding=1),
            nn.GroupNorm(8, middle),
            nn.ReLU(),
            nn.Conv2d(middle, high, 3, stride=2, padding=1),
            nn.GroupNorm(8, high),
            nn.ReLU(),
            nn.Conv2d(high, high, 3, padding=1),
            nn.GroupNorm(8, high),
            nn.ReLU(),
            nn.Conv2d(high, high, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        # 4x4 places of a 64x64 frame stay apart: where a thing is tells subjects apart as much as what it is
        self.embed = nn.Linear(high * 16, embedding)
        self.head = nn.Linear(embedding, outputs)

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows (B, 16, 3, 64, 64) in [-1, 1] to logits (B, outputs) and embeddings (B, D), float32."""
        size, last = len(windows), WINDOW - 1
        still = windows[:, :last:3]  # LOOK_AT; an index would have to travel to the device
        change = 2 * (windows[:, 1::3] - still)
        x = torch.cat([still, change], 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.features(x).flatten(1).reshape(size, len(LOOK_AT), -1).mean(1)
        embedding = self.embed(x)
        return self.head(nnf.gelu(embedding)).float(), embedding.float()


class Evaluator:
    """A trained ``ClipNet`` and what its outputs stand for.

    parts: the names of each part of a label, one after the other in the outputs: one part, the subjects, or two, the
    characters and the actions. ``subjects`` are all labels: of two parts every pair, "knight walk".
    """

    def __init__(self, net: ClipNet, parts: Sequence[Sequence[str]]) -> None:
        self.net = net.eval()
        self.parts = tuple(tuple(names) for names in parts)
        self.subjects = tuple(" ".join(names) for names in product(*self.parts))

    @property
    def weights(self) -> nn.Module:
        return self.net

    @property
    def facts(self) -> dict[str, Any]:
        return {"parts": [list(names) for names in self.parts]}

    @torch.no_grad()
    def classify(self, windows: np.ndarray, batch: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Windows uint8 (B, 16, 64, 64, 3): the most likely subject's index (B,) and unit embeddings (B, D) float32.

        Raises ValueError for another shape or type.
        """
        if windows.dtype != np.uint8 or windows.shape[1:] != (WINDOW, 64, 64, 3):
            raise ValueError(f"the evaluator sees uint8 (B, {WINDOW}, 64, 64, 3), not {windows.dtype} {windows.shape}")
        device = self.net.head.weight.device
        guesses, embeddings = [], []
        for start in range(0, len(windows), batch):
            part = torch.from_numpy(np.ascontiguousarray(windows[start : start + batch])).to(device)
            logits, embedding = self.net(part.permute(0, 1, 4, 2, 3).float() / 127.5 - 1)
            guess = torch.zeros(len(part), dtype=torch.long, device=device)
            for names, scores in zip(self.parts, logits.split([len(names) for names in self.parts], 1), strict=True):
                guess = guess * len(names) + scores.argmax(1)
            guesses.append(guess.cpu().numpy())
            embeddings.append(nnf.normalize(embedding, dim=1).cpu().numpy())
        return np.concatenate(guesses), np.concatenate(embeddings)

    def named(self, windows: np.ndarray) -> list[tuple[str, ...]]:
        """What each of some windows uint8 (B, 16, 64, 64, 3) shows: a name for each part."""
        labels = list(product(*self.parts))
        return [labels[index] for index in self.classify(windows)[0]]

    def accuracy(self, windows: np.ndarray, subjects: Sequence[str]) -> float:
        """Share (0..1) of windows uint8 (B, 16, 64, 64, 3) whose first guess is their subject."""
        guess, _ = self.classify(windows)
        return float(np.mean([self.subjects[index] == subject for index, subject in zip(guess, subjects, strict=True)]))


# ------------------------------------------------------------------------------------------------------ training


def augment(windows: torch.Tensor, rng: np.random.Generator, mirror: bool = True) -> torch.Tensor:
    """Windows (B, F, 3, H, W) in [-1, 1], each with its own mirror, shift, soft focus, colour cast and noise.

    Mirrored half the time; shifted by up to 4 pixels over white; three in four brought down to a quarter .. the whole
    of their size and up again; gain 0.85 .. 1.15, offset up to 0.1 a colour; noise up to 0.08. ``rng`` draws it all.
    mirror: False where left and right are told apart (a step to the left).
    """
    side = windows.shape[-1]
    out = torch.empty_like(windows)
    for row, window in enumerate(windows):
        if mirror and rng.random() < 0.5:
            window = window.flip(-1)
        dy, dx = (int(value) for value in rng.integers(-4, 5, size=2))
        window = nnf.pad(window, (4, 4, 4, 4), value=1.0)[..., 4 - dy : 4 - dy + side, 4 - dx : 4 - dx + side]
        if rng.random() < 0.75:
            small = int(rng.integers(side // 4, side + 1))
            shrunk = nnf.interpolate(window, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
            window = nnf.interpolate(shrunk, size=(side, side), mode="bilinear", align_corners=False)
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (1, 3, 1, 1)).astype(np.float32))
        offset = torch.from_numpy(rng.uniform(-0.1, 0.1, (1, 3, 1, 1)).astype(np.float32))
        noise = torch.from_numpy(rng.standard_normal(tuple(window.shape), dtype=np.float32))
        out[row] = (window * gain + offset + float(rng.uniform(0, 0.08)) * noise).clamp(-1, 1)
    return out


def _as_tensor(windows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(windows).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _starts(clip: Clip, alone: bool, kept_out: bool) -> list[int]:
    """Starts of the clip's windows, either those for training or those kept out; only a lone clip keeps some out.

    A window of an action that ends otherwise than it began lies in the clip, but for ``LATE`` frames.
    """
    last = len(clip.frames) if clip.wraps or not clip.character else max(1, len(clip.frames) - WINDOW + LATE + 1)
    return [start for start in range(last) if (alone and start % KEPT_OUT == KEPT_OUT - 1) == kept_out]


def label_of(clip: Clip) -> tuple[str, ...]:
    """The parts of a clip's label: its subject, or its character and its action."""
    return (clip.character, clip.action) if clip.character else (clip.subject,)


def train(clips: Sequence[Clip], folder: Path, settings: EvaluatorSettings, name: str = "evaluator") -> Evaluator:
    """Train on the clips that are not held out, every subject equally often. Resumes ``folder/name.state``."""
    from longtake.train import Settings, batch_generator, fit

    seen = [clip for clip in clips if not clip.held_out]
    subjects = sorted({clip.subject for clip in seen})
    if len(subjects) < 2:
        raise UserError(f"an evaluator tells subjects apart, but the data holds {len(subjects)} to train on")
    members = {subject: [clip for clip in seen if clip.subject == subject] for subject in subjects}
    parts = [sorted(set(names)) for names in zip(*map(label_of, seen), strict=True)]
    mirror = not any(clip.character for clip in seen)

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        rng = batch_generator(settings.seed, step)
        rows, labels = [], []
        for _ in range(settings.batch):
            candidates = members[subjects[int(rng.integers(len(subjects)))]]
            clip = candidates[int(rng.integers(len(candidates)))]
            start = int(rng.choice(_starts(clip, len(candidates) == 1, False)))
            rows.append(clip.frames[clip.window(start, WINDOW)])
            labels.append([names.index(name) for names, name in zip(parts, label_of(clip), strict=True)])
        device = next(model.parameters()).device
        logits, _ = model(augment(_as_tensor(np.stack(rows)), rng, mirror).to(device))
        wanted = torch.tensor(labels, device=device)
        each = logits.float().split([len(names) for names in parts], 1)
        losses = [nnf.cross_entropy(one, wanted[:, part], label_smoothing=0.1) for part, one in enumerate(each)]
        return torch.stack(losses).sum()

    torch.manual_seed(settings.seed)
    net = ClipNet(sum(map(len, parts)), settings.widths, settings.embedding)
    every = max(1, settings.steps // 3)
    plan = Settings(
        settings.steps,
        settings.learning_rate,
        warmup=min(50, settings.steps // 10),
        weight_decay=0.05,
        ema=0.99,
        checkpoint_every=every,
        precision=settings.precision,
    )
    fit(net, loss, plan, folder, name=name)
    return Evaluator(net, parts)


# ------------------------------------------------------------------------------------------------------ how good it is


def real_windows(clips: Sequence[Clip], *, held_out: bool) -> tuple[np.ndarray, list[str]]:
    """Real windows that the evaluator was not trained on, uint8 (B, 16, H, W, 3), and their subjects.

    held_out: four windows of every held-out clip (emoji: people of a skin tone that this subject's training clips lack;
    KayKit: a character in an action that only others were seen in).
    Otherwise, of subjects with a single training clip, the windows at the starts kept out. Their frames were seen in
    other windows: this shows that known pictures are known again, not what the evaluator makes of unknown ones.
    """
    trained: dict[str, int] = {}
    for clip in clips:
        trained[clip.subject] = trained.get(clip.subject, 0) + (not clip.held_out)
    rows, subjects = [], []
    for clip in clips:
        lone = trained[clip.subject] == 1
        if held_out and clip.held_out:
            every = _starts(clip, False, False)
            starts = [every[int(place)] for place in np.linspace(0, len(every), 4, endpoint=False)]
        elif not held_out and not clip.held_out and lone:
            starts = _starts(clip, True, True)
        else:
            continue
        rows += [clip.frames[clip.window(start, WINDOW)] for start in starts]
        subjects += [clip.subject] * len(starts)
    return np.stack(rows) if rows else np.empty((0, WINDOW, 64, 64, 3), np.uint8), subjects


def measure(evaluator: Evaluator, clips: Sequence[Clip]) -> dict[str, Any]:
    """The evaluator's accuracy on real clips, plain and degraded as in training: share and number of windows of
    each."""
    from longtake.train import batch_generator

    report: dict[str, Any] = {}
    mirror = not any(clip.character for clip in clips)
    labels = {clip.subject: label_of(clip) for clip in clips}
    for key, held_out in (("unseen_clips", True), ("unseen_starts", False)):
        windows, subjects = real_windows(clips, held_out=held_out)
        if not len(windows):
            continue
        rough = augment(_as_tensor(windows), batch_generator(1, 0), mirror)
        degraded = ((rough + 1) * 127.5).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous().numpy()
        report[key] = {
            "windows": len(windows),
            "subjects": len(set(subjects)),
            "accuracy": round(evaluator.accuracy(windows, subjects), 4),
            "accuracy_degraded": round(evaluator.accuracy(degraded, subjects), 4),
        }
        if len(evaluator.parts) > 1:
            right = np.equal(evaluator.named(windows), [labels[subject] for subject in subjects]).mean(0)
            report[key] |= {f"{part}_right": round(float(share), 4) for part, share in zip(PARTS, right, strict=True)}
    return report


# ------------------------------------------------------------------------------------------------------ files


def data_hash(clips: Sequence[Clip]) -> str:
    """Hash of names, subjects, who is held out, and every pixel."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(f"{clip.name}|{clip.subject}|{clip.held_out}|{clip.wraps}|{clip.frames.shape}|".encode())
        digest.update(clip.frames.tobytes())
    return digest.hexdigest()


def load_or_train(
    clips: Sequence[Clip], folder: Path, settings: EvaluatorSettings | None = None, *, again: bool = False
) -> tuple[Evaluator, dict[str, Any]]:
    """The evaluator of these clips and settings, from ``folder/evaluator-<hash>.safetensors`` or trained and written
    there.

    again: train even if the file is there. Returns it with its report (``measure``, seconds of training, hash).
    """
    settings = settings or EvaluatorSettings()
    code = {"format": _FORMAT, "look_at": LOOK_AT, "kept_out": KEPT_OUT, "late": LATE}
    identity = {"data": data_hash(clips), **code, "settings": asdict(settings)}

    def build(report: dict[str, Any]) -> Evaluator:
        outputs = sum(len(names) for names in report["parts"])
        return Evaluator(ClipNet(outputs, settings.widths, settings.embedding), report["parts"])

    return cached_judge(
        folder,
        "evaluator",
        identity,
        lambda name: train(clips, folder, settings, name),
        build,
        lambda judge: measure(judge, clips),
        again=again,
    )
