"""``longtake train video``: the recipe of the small video prior, first the autoencoder, then the text-to-video UNet.

The autoencoder learns single frames (random shifts and flips, the moving subject weighted over the white ground). The
UNet (diffusers' UNet3DConditionModel) learns 16-frame windows of its cached latents by v-prediction (Salimans and Ho,
2022) on a cosine schedule with zero terminal signal (Lin et al., 2024), text dropped in one window of eight.
Shape legend: B windows, F 16 frames, c latent channels, h w latent grid, T text tokens, D text features.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from longtake.train import Settings
    from longtake.video.data import Clip

WINDOW = 16
LATENT_CHANNELS = 16
AUTOENCODER = {"latent_channels": LATENT_CHANNELS, "widths": (48, 96, 160)}
UNET = {
    "sample_size": 8,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (96, 128),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": 384,
    "attention_head_dim": 16,
}
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


SHIFT = 4  # pixels a training frame moves at most, each way


@dataclass
class Frames:
    """All frames of the training clips, (N, 3, H, W) uint8 on the training's device, and the odds of each (N,)."""

    images: torch.Tensor
    odds: np.ndarray

    @classmethod
    def of(cls, clips: list[Clip], device: torch.device) -> Frames:
        import numpy as np
        import torch

        images = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).permute(0, 3, 1, 2).contiguous()
        # a subject with nine clips must not outweigh a subject with one
        count: dict[str, int] = {}
        for clip in clips:
            count[clip.subject] = count.get(clip.subject, 0) + len(clip.frames)
        weight = torch.tensor([1.0 / count[clip.subject] ** 0.5 for clip in clips for _ in clip.frames])
        weight = (weight / weight.sum()).double()
        return cls(images.to(device), weight.numpy() / float(weight.sum()))

    def batch(self, size: int, rng: np.random.Generator) -> torch.Tensor:
        """Random frames (size, 3, H, W) in [-1, 1], shifted by up to four pixels over white, half of them mirrored."""
        import numpy as np
        import torch
        import torch.nn.functional as F

        device, (height, width) = self.images.device, self.images.shape[2:]
        picked = torch.from_numpy(rng.choice(len(self.images), size=size, p=self.odds)).to(device)
        rows, columns = np.empty((size, height), np.int64), np.empty((size, width), np.int64)
        for row in range(size):
            dy, dx = (int(value) for value in rng.integers(-SHIFT, SHIFT + 1, size=2))
            rows[row] = np.arange(height) + SHIFT - dy
            columns[row] = np.arange(width) + SHIFT - dx
            if rng.random() < 0.5:
                columns[row] = columns[row, ::-1]
        padded = F.pad(self.images[picked].float() / 127.5 - 1, (SHIFT,) * 4, value=1.0)
        place = torch.arange(size, device=device)[:, None, None]
        y, x = (torch.from_numpy(index).to(device) for index in (rows, columns))
        return padded.permute(0, 2, 3, 1)[place, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 plus L1 of the picture's gradients, pixels off the white ground weighted four times, (B, 3, H, W) each."""
    import torch.nn.functional as F

    weight = 1.0 + 3.0 * F.max_pool2d((target.amin(1, keepdim=True) < 0.9).float(), 3, 1, 1)
    error = (output - target).abs() * weight
    edges = output.new_zeros(())
    for dim in (2, 3):
        change = (output.diff(dim=dim) - target.diff(dim=dim)).abs()
        edges = edges + (change * weight.narrow(dim, 1, weight.shape[dim] - 1)).mean()
    return error.mean() + 0.5 * edges + 0.5 * (error**2).mean()


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], mean over images of the per-image value."""
    error = ((output.clamp(-1, 1) - target) ** 2).flatten(1).mean(1).clamp_min(1e-8)
    return float((10 * (4.0 / error).log10()).mean())


def train_autoencoder(clips: list[Clip], folder: Path, settings: Settings, *, batch: int, seed: int) -> Any:
    """Train (or resume) the autoencoder; held-out clips give the PSNR in the record."""
    import torch
    from longtake.train import batch_generator, fit, normal, training_device
    from longtake.video.prior import FrameAutoencoder

    torch.manual_seed(seed)
    device = training_device()
    frames = Frames.of([clip for clip in clips if not clip.held_out], device)
    unseen = Frames.of([clip for clip in clips if clip.held_out], device).images[::7].float() / 127.5 - 1
    model = FrameAutoencoder(**AUTOENCODER).to(memory_format=torch.channels_last)

    def loss(network: Any, step: int) -> torch.Tensor:
        rng = batch_generator(seed, step)
        images = frames.batch(batch, rng).to(memory_format=torch.channels_last)
        latent = network.encode(images).latent
        noise = normal(rng, (batch, LATENT_CHANNELS, 8, 8), device)
        return reconstruction_loss(network.decode(latent + 0.08 * noise).sample.float(), images)

    def judge(network: Any, step: int) -> dict[str, float]:
        rebuilt = torch.cat([network(part) for part in unseen.split(64)])
        return {"psnr_held_out_db": round(psnr(rebuilt, unseen), 3)}

    return fit(model, loss, settings, folder, name="autoencoder", on_checkpoint=judge)


def encode_clips(autoencoder: Any, clips: list[Clip]) -> list[torch.Tensor]:
    """Latents (F, c, h, w) float32 of every clip, where the autoencoder is."""
    import torch
    from longtake.train import device_of

    out = []
    with torch.inference_mode():
        for clip in clips:
            images = torch.from_numpy(clip.frames).to(device_of(autoencoder)).permute(0, 3, 1, 2).float() / 127.5 - 1
            out.append(autoencoder.encode(images).latent.clone())
    return out


def wordings(clip: Clip) -> list[str]:
    """The texts one clip is trained under: its caption, the caption with the skin tone, other wordings."""
    from longtake.video.subjects import SUBJECTS

    who, _, rest = clip.caption.partition(" ")
    texts = [clip.caption, *SUBJECTS[clip.subject].wordings]
    if clip.tone:
        texts += [f"{clip.caption}, {clip.tone} skin tone"]
    if who in ("person", "man", "woman"):
        texts += [f"a {who} {rest}", f"someone {rest}"]
    else:
        texts += [f"a {clip.caption}"]
    return texts


def quicken(unet: Any) -> None:
    """Make training on CPU cores about a third cheaper, without changing the function that is learned.

    Temporal convolutions become one matrix product (oneDNN's bfloat16 backward of a (3,1,1) kernel is slow), attention
    over 16 to 64 tokens plain products; elsewhere both stay as they are. On every device the temporal dropout of the
    stock class is switched off: a small model underfits.
    """
    import torch
    import torch.nn.functional as F
    from diffusers.models.attention_processor import AttnProcessor
    from longtake.train import device_of

    def as_product(conv: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            y = F.pad(x.permute(0, 2, 3, 4, 1), (0, 0, 0, 0, 0, 0, 1, 1))
            y = torch.cat([y[:, :-2], y[:, 1:-1], y[:, 2:]], -1)
            weight = conv.weight[:, :, :, 0, 0].permute(0, 2, 1).reshape(len(conv.weight), -1)
            return F.linear(y, weight, conv.bias).permute(0, 4, 1, 2, 3)

        return forward

    on_cpu = device_of(unet).type == "cpu"
    if on_cpu:
        unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if on_cpu and isinstance(module, torch.nn.Conv3d):
            module.__dict__["forward"] = as_product(module)


def train_unet(
    clips: list[Clip],
    autoencoder: Any,
    folder: Path,
    settings: Settings,
    *,
    batch: int,
    seed: int,
    start: dict[str, torch.Tensor] | None = None,
) -> Any:
    """Train (or resume) the UNet on 16-frame windows; held-out clips give the validation loss in the record.

    start: weights to begin with instead of random ones, when there is no checkpoint to resume.
    """
    import torch
    from diffusers import DDIMScheduler, UNet3DConditionModel
    from longtake.text import SentenceEncoder
    from longtake.train import batch_generator, fit, normal, stratified_times, training_device

    torch.manual_seed(seed)
    device = training_device()
    encoder = SentenceEncoder()
    scheduler = DDIMScheduler(**SCHEDULE)
    seen = [clip for clip in clips if not clip.held_out]
    unseen = [clip for clip in clips if clip.held_out]
    autoencoder.to(device)
    latents, latents_unseen = encode_clips(autoencoder, seen), encode_clips(autoencoder, unseen)
    known = {text: None for clip in clips for text in [*wordings(clip), ""]}
    states = {text: encoder.encode([text])[0].to(device) for text in known}
    members: dict[str, list[int]] = {}
    for index, clip in enumerate(seen):
        members.setdefault(clip.subject, []).append(index)
    subjects = sorted(members)
    model = UNet3DConditionModel(**UNET)
    if start is not None:
        model.load_state_dict(start)
    quicken(model.to(device))

    def window(clip: Clip, latent: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        start = int(rng.integers(len(latent)))
        return latent[torch.from_numpy(clip.window(start, WINDOW)).to(device)].transpose(0, 1)

    def example(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        index = int(rng.choice(members[subjects[int(rng.integers(len(subjects)))]]))
        texts = wordings(seen[index])
        text = "" if rng.random() < 0.12 else texts[int(rng.integers(len(texts)))]
        return window(seen[index], latents[index], rng), states[text]

    def objective(network: Any, clean: torch.Tensor, text: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        noise = normal(rng, clean.shape, device)
        time = stratified_times(rng, len(clean), device)
        noisy = scheduler.add_noise(clean, noise, time)
        predicted = network(noisy, time, encoder_hidden_states=text).sample
        return ((predicted.float() - scheduler.get_velocity(clean, noise, time)) ** 2).mean()

    def loss(network: Any, step: int) -> torch.Tensor:
        rng = batch_generator(seed + 1, step)
        pairs = [example(rng) for _ in range(batch)]
        return objective(
            network, torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs]), rng
        )

    def judge(network: Any, step: int) -> dict[str, float]:
        rng, total = batch_generator(seed + 2, 0), 0.0
        for _ in range(8):
            picked = rng.integers(len(unseen), size=8)
            clean = torch.stack([window(unseen[i], latents_unseen[i], rng) for i in picked])
            text = torch.stack([states[unseen[i].caption] for i in picked])
            total += float(objective(network, clean, text, rng)) / 8
        return {"loss_held_out": round(total, 4)}

    return fit(model, loss, settings, folder, name="unet", on_checkpoint=judge)


def export(autoencoder: Any, unet: Any, folder: Path) -> Path:
    """Write the prior as a diffusers pipeline folder, weights in float16 safetensors; the model card is kept apart."""
    import torch
    from diffusers import DDIMScheduler, UNet3DConditionModel
    from longtake.text import SentenceEncoder
    from longtake.video.pipeline import LongVideoPipeline

    stock = UNet3DConditionModel(**UNET)
    stock.load_state_dict(unet.state_dict())
    autoencoder.to("cpu")
    pipeline = LongVideoPipeline(
        vae=autoencoder.to(memory_format=torch.contiguous_format),
        text_encoder=SentenceEncoder(),
        tokenizer=None,
        unet=stock,
        scheduler=DDIMScheduler(**SCHEDULE),
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    return folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train video``."""
    from longtake.train import add_arguments as add_schedule

    parser.add_argument("--data", type=Path, required=True, help="folder with emoji_train.zip, or the zip itself")
    parser.add_argument("--out", type=Path, default=Path("runs/train-video"), help="checkpoints, record, the prior")
    parser.add_argument("--autoencoder-steps", type=int, default=1200)
    parser.add_argument("--autoencoder-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2200, help="UNet steps")
    parser.add_argument("--batch", type=int, default=8, help="windows a UNet step")
    parser.add_argument(
        "--start-from", default=None, metavar="PRIOR", help="keep this prior's autoencoder and begin with its UNet"
    )
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train both networks, resuming what is there, and export the prior to ``--out``/prior."""
    from longtake.train import Settings, schedule
    from longtake.video.data import load_clips

    clips = load_clips(args.data)
    shared = schedule(args)
    start = None
    if args.start_from is not None:
        autoencoder, start = _start_from(args.start_from)
    else:
        settings = Settings(args.autoencoder_steps, 2e-3, checkpoint_every=250, **shared)
        autoencoder = train_autoencoder(clips, args.out, settings, batch=args.autoencoder_batch, seed=args.seed)
    settings = Settings(args.steps, 1e-3, ema=0.9985, checkpoint_every=250, **shared)
    unet = train_unet(clips, autoencoder, args.out, settings, batch=args.batch, seed=args.seed, start=start)
    print(f"prior written to {export(autoencoder, unet, args.out / 'prior')}")
    return 0


def _start_from(prior: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The autoencoder of a prior that this recipe made, and its UNet's weights."""
    from longtake.errors import UserError
    from longtake.video.pipeline import LongVideoPipeline

    pipe = LongVideoPipeline.from_prior(prior)
    wrong = [key for key, value in UNET.items() if _plain(pipe.unet.config.get(key)) != _plain(value)]
    if wrong:
        raise UserError(f"{prior} is not a prior of this recipe: its UNet differs in {', '.join(sorted(wrong))}")
    return pipe.vae.eval(), pipe.unet.state_dict()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
