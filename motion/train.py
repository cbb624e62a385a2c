"""``longtake train motion``: the recipe of the small motion prior, an MDM in the 263-feature form with free wording.

MDM (arXiv 2209.14916) predicts the clean motion from a noisy one; masked L2 over normalised features, the root's four
numbers weighted; beside it the first differences of joint positions and, as MDM's foot contact loss, the speed of feet
that stand. Every clip also joins in mirrored, with left and right changed in its caption.
Legend: B rows, F frames, D 263 features, E 384 text features.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.motion.objective import DIFFERENCE_WEIGHT, FOOT_WEIGHT, ROOT_WEIGHT, SCHEDULE

if TYPE_CHECKING:
    import numpy as np
    import torch
    from longtake.motion.data import Clip
    from longtake.motion.model import MDM
    from longtake.motion.space import MotionSpace
    from longtake.train import Settings

MODEL: dict[str, Any] = {
    "features": 263,
    "width": 256,
    "layers": 6,
    "dropout": 0.0,
    "text_width": 384,
    "padding": "mask",
}
LENGTHS = (40, 64, 80, 100, 128, 160)  # frames of a batch's rows, drawn anew each step
FRAMES_A_STEP = 3200
STANDING_SPEED = 0.0076  # metres a frame: root mean square speed of the real feet that are in contact
DROP_TEXT = 0.1


@dataclass
class Corpus:
    """Normalised features of the clips and of their mirror images, with the text vectors of all their captions."""

    features: torch.Tensor  # (sum of F, D), clip after clip, and a frame of zeros at the end
    starts: list[int]  # of each clip
    lengths: list[int]
    labels: list[tuple[str, str]]  # action, style
    texts: dict[str, torch.Tensor]  # (E,) each
    members: dict[str, list[int]]  # action -> rows
    odds: np.ndarray  # of each action, in the order of ``members``

    @classmethod
    def of(cls, clips: list[Clip], space: MotionSpace, encoder: Any, *, mirror: bool) -> Corpus:
        """Encode ``clips``; an action is drawn as often as the square root of its number of clips."""
        import numpy as np
        import torch
        from longtake.motion.captions import captions_of

        every = [*clips, *(clip.mirrored() for clip in clips)] if mirror else clips
        labels = [(clip.action, clip.style) for clip in every]
        known = dict.fromkeys(text for pair in sorted(set(labels)) for text in captions_of(*pair))
        texts = {text: encoder.encode([text])[0, 0] for text in known}
        members: dict[str, list[int]] = {}
        for row, (action, _) in enumerate(labels):
            members.setdefault(action, []).append(row)
        odds = np.sqrt([len(rows) for rows in members.values()])
        features = [space.normalize(clip.features()) for clip in every]
        lengths = [len(part) for part in features]
        starts = [0, *np.cumsum(lengths)[:-1].tolist()]
        flat = torch.cat([*features, features[0].new_zeros(1, features[0].shape[1])])
        return cls(flat, starts, lengths, labels, texts, members, odds / odds.sum())

    def to(self, device: torch.device) -> Corpus:
        """The corpus with its tensors on a device."""
        texts = {text: vector.to(device) for text, vector in self.texts.items()}
        return replace(self, features=self.features.to(device), texts=texts)

    def batch(
        self, frames: int, rows: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Windows (B, F, D) zero beyond their lengths (B,), and text vectors (B, E), zero where the text is dropped."""
        import numpy as np
        import torch
        from longtake.motion.captions import caption

        device = self.features.device
        actions = list(self.members)
        nothing = len(self.features) - 1
        places, lengths, texts = np.full((rows, frames), nothing), [], []
        for row in range(rows):
            clip = int(rng.choice(self.members[actions[int(rng.choice(len(actions), p=self.odds))]]))
            start = int(rng.integers(max(1, self.lengths[clip] - frames + 1)))
            length = min(frames, self.lengths[clip] - start)
            places[row, :length] = self.starts[clip] + start + np.arange(length)
            lengths.append(length)
            vector = self.texts[caption(*self.labels[clip], rng)]
            texts.append(torch.zeros_like(vector) if rng.random() < DROP_TEXT else vector)
        motion = self.features[torch.from_numpy(places).to(device)]
        return motion, torch.tensor(lengths, device=device), torch.stack(texts)


def objective(
    model: Any,
    corpus: Corpus,
    scheduler: Any,
    frames: int,
    rows: int,
    rng: np.random.Generator,
    space: MotionSpace,
) -> torch.Tensor:
    """The training loss of one batch."""
    import torch
    from longtake.motion.representation import HUMANML3D
    from longtake.train import normal, stratified_times

    clean, lengths, text = corpus.batch(frames, rows, rng)
    noise = normal(rng, clean.shape, clean.device)
    time = stratified_times(rng, rows, clean.device)
    out = model(scheduler.add_noise(clean, noise, time), time, text, lengths=lengths).float()
    valid = (torch.arange(frames, device=clean.device) < lengths[:, None]).float()[..., None]
    weight = clean.new_ones(clean.shape[-1])
    weight[:4] = ROOT_WEIGHT
    error = (((out - clean) ** 2 * weight * valid).sum((1, 2)) / (lengths * weight.sum())).mean()
    places = HUMANML3D.slices["positions"]
    steps = ((out[..., places] - clean[..., places]).diff(dim=1) ** 2 * valid[:, 1:]).sum((1, 2))
    steps = (steps / ((lengths - 1).clamp_min(1) * (places.stop - places.start))).mean()
    # neighbouring frames differ by about a fifth of the spread of positions, hence the large weight
    return error + DIFFERENCE_WEIGHT * steps + FOOT_WEIGHT * slide(out, clean, valid, space)


def slide(out: torch.Tensor, clean: torch.Tensor, valid: torch.Tensor, space: MotionSpace) -> torch.Tensor:
    """How much faster than in ``clean`` the feet move where ``clean`` stands: squared, 1 at the speed of real ones.

    out, clean: (B, F, D) normalised features. valid: (B, F, 1), 0 beyond a row's end.
    """
    import torch
    from longtake.motion.representation import HUMANML3D

    feet = list(HUMANML3D.skeleton.feet)
    with torch.autocast(out.device.type, enabled=False):  # a path is a running sum: not in half precision
        step = [space.joints(motion)[:, :, feet].diff(dim=1) for motion in (out, clean)]
    contact = space.denormalize(clean)[:, :-1, HUMANML3D.slices["contacts"]] * valid[:, 1:]
    error = (step[0] - step[1]).square().sum(-1) / STANDING_SPEED**2
    return (error * contact).sum() / contact.sum().clamp_min(1)


def spread_text(model: Any, texts: list[torch.Tensor]) -> None:
    """Begin with a text layer that tells captions apart: sentence vectors of "left" and "right" lie 0.98 together.

    The layer starts as a random rotation of the captions' whitened principal directions, and learns from there.
    """
    import torch

    rows = torch.stack(texts).double()
    mean = rows.mean(0)
    _, size, basis = torch.linalg.svd(rows - mean, full_matrices=False)
    spread = size / math.sqrt(len(rows))
    gain = 1.0 / (spread**2 + (0.1 * spread[0]) ** 2).sqrt()
    width = model.embed_text.out_features
    turn = torch.linalg.qr(torch.randn(max(width, len(gain)), len(gain), dtype=torch.float64))[0][:width]
    weight = 0.5 * turn @ (gain[:, None] * basis)
    with torch.no_grad():
        model.embed_text.weight.copy_(weight)
        model.embed_text.bias.copy_(-weight @ mean)


def train_model(
    clips: list[Clip], held_out: list[Clip], folder: Path, settings: Settings, *, seed: int
) -> tuple[MDM, MotionSpace]:
    """Train (or resume) the MDM; returns it with the space of its features. The held-out loss is in the record."""
    import torch
    from diffusers import DDIMScheduler
    from longtake.motion.data import FPS
    from longtake.motion.model import MDM
    from longtake.motion.space import MotionSpace
    from longtake.text import SentenceEncoder
    from longtake.train import batch_generator, fit, training_device

    torch.manual_seed(seed)
    device = training_device()
    encoder, scheduler = SentenceEncoder(), DDIMScheduler(**SCHEDULE)
    space = MotionSpace(features=MODEL["features"], fps=FPS, shortest_row=LENGTHS[0], longest_row=LENGTHS[-1])
    space.fit([part.features() for clip in clips for part in (clip, clip.mirrored())])
    corpus = Corpus.of(clips, space, encoder, mirror=True)
    unseen = Corpus.of(held_out, space, encoder, mirror=False).to(device)
    model = MDM(**MODEL)
    spread_text(model, list(corpus.texts.values()))
    space, corpus = space.to(device), corpus.to(device)

    def loss(network: Any, step: int) -> torch.Tensor:
        rng = batch_generator(seed + 1, step)
        frames = LENGTHS[int(rng.integers(len(LENGTHS)))]
        return objective(network, corpus, scheduler, frames, FRAMES_A_STEP // frames, rng, space)

    def judge(network: Any, step: int) -> dict[str, float]:
        rng = batch_generator(seed + 2, 0)
        total = sum(float(objective(network, unseen, scheduler, 100, 64, rng, space)) for _ in range(6))
        return {"loss_held_out": round(total / 6, 4)}

    fit(model, loss, settings, folder, name="mdm", on_checkpoint=judge)
    return model.cpu(), space.cpu()


def export(model: MDM, space: MotionSpace, folder: Path) -> Path:
    """Write the prior as a diffusers pipeline folder, the net in float16 safetensors; the model card is kept apart."""
    import torch
    from diffusers import DDIMScheduler
    from longtake.motion.pipeline import LongMotionPipeline
    from longtake.text import SentenceEncoder

    pipeline = LongMotionPipeline(model.float(), DDIMScheduler(**SCHEDULE), space, SentenceEncoder())
    pipeline.save_pretrained(folder, safe_serialization=True)
    model.to(torch.float16).save_pretrained(folder / "model", safe_serialization=True)
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train motion``."""
    from longtake.train import add_arguments as add_schedule

    parser.add_argument("--data", type=Path, required=True, help="folder with bandai_train.npz and bandai_val.npz")
    parser.add_argument("--out", type=Path, default=Path("runs/train-motion"), help="checkpoints, record, the prior")
    parser.add_argument("--pairs", action="store_true", help="train the two-person block on a frozen prior instead")
    parser.add_argument("--prior", default="bandai-small", help="with --pairs: the prior to freeze (bandai-small)")
    parser.add_argument("--steps", type=int, default=None, help="default 4500, with --pairs 1500")
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train, resuming what is there, and export the prior to ``--out``/prior."""
    from longtake.motion.data import load_motions
    from longtake.train import Settings, schedule

    if args.pairs:
        from longtake.motion.pair.train import run_pairs

        return run_pairs(args)
    clips, held_out = load_motions(args.data, "train"), load_motions(args.data, "val")
    steps = 4500 if args.steps is None else args.steps
    settings = Settings(steps, 4e-4, ema=0.998, **schedule(args))
    model, space = train_model(clips, held_out, args.out, settings, seed=args.seed)
    print(f"prior written to {export(model, space, args.out / 'prior')}")
    return 0
