"""The judge of generated motion: a small classifier of clips by their action, trained on real clips alone.

It sees HumanML3D features without the foot contacts; its embedding is the feature space of the Fréchet distance.
Legend: W windows, F frames, D 259 features looked at, E embedding width.

    judge, report = load_or_train(train_clips, val_clips, Path("runs/evaluate-motion"))
    guess, embedding = judge.classify(features)        # (W, F, 263) -> (W,) and (W, E)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.evaluation import cached_judge
from longtake.motion.data import Clip
from longtake.motion.space import MotionSpace
from torch import nn

LOOKED_AT = 259  # features without the four contacts
WINDOW = 40  # frames, the shortest row of the prior
FEWEST_CLIPS = 100  # actions with fewer clips are not judged
_FORMAT = 1


@dataclass(frozen=True)
class EvaluatorSettings:
    """``width`` of the convolutions, ``embedding`` E, training ``steps`` of ``batch`` windows."""

    steps: int = 800
    batch: int = 64
    learning_rate: float = 1e-3
    width: int = 96
    embedding: int = 32
    seed: int = 0


class ActionNet(nn.Module):
    """Three convolutions along time, two of them striding, mean and maximum over time, embedding, logits."""

    def __init__(self, actions: int, width: int, embedding: int) -> None:
        super().__init__()
        self.along = nn.Sequential(
            nn.Conv1d(LOOKED_AT, width, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(width, width, 4, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
            nn.Conv1d(width, width, 4, stride=2, padding=1),
            nn.GroupNorm(8, width),
            nn.GELU(),
        )
        self.embed = nn.Linear(2 * width, embedding)
        self.head = nn.Linear(embedding, actions)

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised windows (W, F, >= 259): logits (W, actions) and embeddings (W, E), float32."""
        x = self.along(windows[..., :LOOKED_AT].transpose(1, 2))
        embedding = self.embed(torch.cat([x.mean(-1), x.amax(-1)], -1)).float()
        return self.head(nn.functional.gelu(embedding)).float(), embedding


class Evaluator:
    """A trained ``ActionNet``, the actions its outputs stand for, and the space of its input."""

    def __init__(self, net: ActionNet, actions: Sequence[str], space: MotionSpace) -> None:
        self.net, self.actions, self.space = net.eval(), tuple(actions), space

    @property
    def weights(self) -> nn.Module:
        """The net and the statistics of its input."""
        return nn.ModuleDict({"net": self.net, "space": self.space})

    @property
    def facts(self) -> dict[str, Any]:
        return {"actions": list(self.actions)}

    @torch.no_grad()
    def classify(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """De-normalised features (W, F, 263): the most likely action's number (W,) and embeddings (W, E), on the
        CPU."""
        logits, embedding = self.net(self.space.normalize(features.float().to(self.net.head.weight.device)))
        return logits.argmax(-1).cpu(), embedding.cpu()

    def accuracy(self, features: torch.Tensor, actions: Sequence[str]) -> float:
        """Share of windows (W, F, 263) that are taken for the action they should show."""
        wanted = torch.tensor([self.actions.index(action) for action in actions])
        return float((self.classify(features)[0] == wanted).float().mean())


def judged_actions(clips: Sequence[Clip]) -> list[str]:
    """Actions with enough clips to be judged, sorted."""
    names = [clip.action for clip in clips]
    return sorted({name for name in names if names.count(name) >= FEWEST_CLIPS})


def windows_of(clips: Sequence[Clip], actions: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """The middle window (W, 40, 263) of each long enough clip of these actions, and its action."""
    found, names = [], []
    for clip in clips:
        if clip.action in actions and len(clip.joints) > WINDOW:
            features = clip.features()
            start = (len(features) - WINDOW) // 2
            found.append(features[start : start + WINDOW])
            names.append(clip.action)
    return torch.stack(found), names


def frechet_distance(one: torch.Tensor, two: torch.Tensor) -> float:
    """Fréchet distance of two sets of embeddings (W, E), taken as Gaussians (Heusel et al. 2017, eq. 6)."""
    from scipy.linalg import sqrtm

    a, b = one.double().numpy(), two.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(first @ second)
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(first + second - 2 * np.real(root)))


def data_hash(*splits: Sequence[Clip]) -> str:
    """Hash of names, labels and every joint position of some splits."""
    digest = hashlib.sha256()
    for clips in splits:
        digest.update(f"{len(clips)};".encode())
        for clip in clips:
            digest.update(json.dumps([clip.name, clip.action, clip.style, list(clip.joints.shape)]).encode())
            digest.update(clip.joints.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_or_train(
    clips: Sequence[Clip], val: Sequence[Clip], folder: Path, settings: EvaluatorSettings | None = None
) -> tuple[Evaluator, dict[str, Any]]:
    """The evaluator for these clips, trained if ``folder`` holds none, and what it scores on held-out real clips."""
    settings = settings or EvaluatorSettings()
    actions = judged_actions(clips)
    identity = {
        "format": _FORMAT,
        "window": WINDOW,
        "actions": actions,
        "data": data_hash(clips, val),
        "settings": asdict(settings),
    }

    def build(report: dict[str, Any]) -> Evaluator:
        net = ActionNet(len(report["actions"]), settings.width, settings.embedding)
        return Evaluator(net, report["actions"], MotionSpace())

    def measure(judge: Evaluator) -> dict[str, Any]:
        real, names = windows_of(val, actions)
        return {"accuracy_real_held_out": judge.accuracy(real, names), "windows": len(names)}

    return cached_judge(
        folder, "evaluator", identity, lambda name: train(clips, actions, folder, settings, name), build, measure
    )


def train(
    clips: Sequence[Clip], actions: Sequence[str], folder: Path, settings: EvaluatorSettings, name: str
) -> Evaluator:
    """Train on clips of these actions and their mirror images. Resumes ``folder/name.state``."""
    from longtake.train import Settings, batch_generator, fit, normal, training_device

    device = training_device()
    space = MotionSpace()
    rows = [
        (one.features(), actions.index(one.action))
        for clip in clips
        if clip.action in actions
        for one in (clip, clip.mirrored())
    ]
    space.fit([features for features, _ in rows])
    space.to(device)
    rows = [(features.to(device), label) for features, label in rows]
    torch.manual_seed(settings.seed)
    net = ActionNet(len(actions), settings.width, settings.embedding)
    members = [[i for i, (_, label) in enumerate(rows) if label == number] for number in range(len(actions))]

    def loss(network: nn.Module, step: int) -> torch.Tensor:
        rng = batch_generator(settings.seed + 7, step)
        length = int(rng.integers(WINDOW - 8, WINDOW + 40))
        batch, labels = torch.zeros(settings.batch, length, LOOKED_AT, device=device), []
        for row in range(settings.batch):
            label = int(rng.integers(len(actions)))
            features = rows[int(rng.choice(members[label]))][0]
            start = int(rng.integers(max(1, len(features) - length + 1)))
            # a clip shorter than the window stands still at its end
            picked = torch.arange(start, start + length, device=device).clamp_max(len(features) - 1)
            batch[row] = space.normalize(features[picked])[:, :LOOKED_AT]
            labels.append(label)
        batch = batch + 0.1 * normal(rng, batch.shape, device)
        logits, _ = network(batch)
        wanted = torch.tensor(labels, device=device)
        return nn.functional.cross_entropy(logits, wanted, label_smoothing=0.05)

    fit(net, loss, Settings(settings.steps, settings.learning_rate, ema=0.99, checkpoint_every=400), folder, name=name)
    return Evaluator(net, actions, space)
