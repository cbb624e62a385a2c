"""``longtake train video``: the recipe of the small video prior, autoencoder and UNet, from captioned clips.

The autoencoder learns single frames (L1, edges, and a pyramid of Laplacians, the moving subject weighted over the white
ground). The UNet (diffusers' UNet3DConditionModel) learns windows of its cached latents by v-prediction (Salimans and
Ho, 2022) on a cosine schedule with zero terminal signal (Lin et al., 2024), text dropped in one window of eight; half
of the noise levels are drawn where the motion is decided. A batch is made on the device that trains.
Shape legend: B windows, F frames, c latent channels, h w latent grid, T text tokens, D text features.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.errors import UserError
from longtake.video.objective import SCHEDULE

if TYPE_CHECKING:
    import torch
    from longtake.train import Settings
    from longtake.video.corpus import Sources

LENGTHS = (16, 16, 32, 48)  # frames of a step's windows, one of these
LATENT_CHANNELS = 24
AUTOENCODER: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "widths": (48, 80, 128),
    "encoder_blocks": (1, 1, 1),
    "decoder_widths": (64, 112, 160),
    "decoder_blocks": (4, 3, 3),
}
LATENT_NOISE = 0.06  # added in training: the decoder forgives the sampler's small errors
UNET: dict[str, Any] = {
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
SILENT = 0.12  # share of windows without text
LATE = 0.5  # share of times in 800..999, where the motion is decided
AUTOENCODER_SHARE = 0.3  # of the minutes
BESIDE = 0.7  # minutes of ``whole`` that reading, encoding, sampling and writing take
PRODUCT_ON_GPU = True
DECIDED = 900  # the time at which the record tells the loss of windows that were trained on


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1, L1 of the picture's gradients, L1 of three levels of its Laplacian pyramid, and squares, (B, 3, H, W) each;
    pixels off the white ground are weighted four times."""
    import torch.nn.functional as F

    weight = 1.0 + 3.0 * F.max_pool2d((target.amin(1, keepdim=True) < 0.9).float(), 3, 1, 1)
    error = output - target
    total = (error.abs() * weight).mean() + 0.5 * (error.square() * weight).mean()
    for dim in (2, 3):
        total = total + 0.5 * (error.diff(dim=dim).abs() * weight.narrow(dim, 1, weight.shape[dim] - 1)).mean()
    # the pyramid is linear: that of the error is the difference of the two pictures' pyramids
    level, here = error, weight
    for _ in range(3):
        low = F.avg_pool2d(level, 2)
        detail = level - F.interpolate(low, scale_factor=2.0, mode="bilinear", align_corners=False)
        total = total + 0.5 * (detail.abs() * here).mean()
        level, here = low, F.avg_pool2d(here, 2)
    return total


def psnr(output: torch.Tensor, target: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], mean over images of the per-image value."""
    error = ((output.clamp(-1, 1) - target) ** 2).flatten(1).mean(1).clamp_min(1e-8)
    return float((10 * (4.0 / error).log10()).mean())


def train_autoencoder(sources: Sources, folder: Path, settings: Settings, *, batch: int, seed: int) -> Any:
    """Train (or resume) the autoencoder; held-out clips give the PSNR in the record."""
    import torch
    from longtake.graphs import Split
    from longtake.train import Dice, fit, training_device
    from longtake.video.corpus import Frames
    from longtake.video.prior import FrameAutoencoder

    torch.manual_seed(seed)
    device = training_device()
    frames = Frames(sources.seen, device)
    unseen = Frames(sources.unseen, device).every(7)
    model = FrameAutoencoder(**AUTOENCODER).to(memory_format=torch.channels_last)
    grid = [side // 8 for side in unseen.shape[2:]]

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        dice = Dice(seed, step, device)
        images = frames.batch(batch, dice).to(memory_format=torch.channels_last)
        return images, LATENT_NOISE * dice.normal(batch, LATENT_CHANNELS, *grid)

    def value(network: Any, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return reconstruction_loss(network(images, noise).float(), images)

    def judge(network: Any, step: int) -> dict[str, float]:
        rebuilt = torch.cat([network(part) for part in unseen.split(64)])
        return {"psnr_held_out_db": round(psnr(rebuilt, unseen), 3)}

    return fit(model, Split(draw, value), settings, folder, name="autoencoder", on_checkpoint=judge)


def quicken(unet: Any) -> None:
    """Make training cheaper without changing the function that is learned.

    The temporal dropout of the stock class is off: a small model underfits. On a CPU temporal convolutions become one
    matrix product (oneDNN's bfloat16 backward of a (3, 1, 1) kernel is slow) and attention over 16 to 64 tokens plain
    products. On a GPU temporal convolutions become products too where ``PRODUCT_ON_GPU`` says so, spatial ones take
    channels last, and norms keep the number format that they are given: autocast would make float32 of it.
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

    def as_given(norm: Any) -> Any:
        def forward(x: torch.Tensor) -> torch.Tensor:
            kind = x.device.type
            mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
            form = torch.get_autocast_dtype(kind) if mixed else x.dtype
            with torch.autocast(kind, enabled=False):
                x, weight, bias = (tensor.to(form) for tensor in (x, norm.weight, norm.bias))
                if isinstance(norm, torch.nn.GroupNorm):
                    return F.group_norm(x, norm.num_groups, weight, bias, norm.eps)
                return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

        return forward

    on_cpu = device_of(unet).type == "cpu"
    if on_cpu:
        unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.Conv3d) and (on_cpu or PRODUCT_ON_GPU):
            module.__dict__["forward"] = as_product(module)
        if isinstance(module, torch.nn.Conv2d) and not on_cpu:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)) and not on_cpu:
            module.__dict__["forward"] = as_given(module)


def objective(
    network: Any, scheduler: Any, clean: torch.Tensor, text: torch.Tensor, noise: torch.Tensor, time: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of v, a scalar tensor, of windows and noise (B, c, F, h, w), texts (B, T, D), times (B,)."""
    predicted = network(scheduler.add_noise(clean, noise, time), time, encoder_hidden_states=text).sample
    return ((predicted.float() - scheduler.get_velocity(clean, noise, time)) ** 2).mean()


def train_unet(
    sources: Sources,
    autoencoder: Any,
    folder: Path,
    settings: Settings,
    *,
    batch: int,
    seed: int,
    start: dict[str, torch.Tensor] | None = None,
) -> Any:
    """Train (or resume) the UNet on windows of 16, 32 and 48 frames, ``batch`` x 16 frames a step.

    The record has the loss on held-out clips over all times, and that on clips trained on at time 900.
    start: weights to begin with instead of random ones, when there is no checkpoint to resume.
    """
    import torch
    from diffusers import DDIMScheduler, UNet3DConditionModel
    from longtake.graphs import Split
    from longtake.train import Dice, batch_generator, fit, training_device
    from longtake.video.corpus import Windows

    torch.manual_seed(seed)
    device = training_device()
    scheduler = DDIMScheduler(**SCHEDULE)
    autoencoder.to(device)
    seen, unseen = (Windows(autoencoder, clips, sources.texts) for clips in (sources.seen, sources.unseen))
    model = UNet3DConditionModel(**UNET)
    if start is not None:
        model.load_state_dict(start)
    quicken(model.to(device))

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        frames = int(batch_generator(seed + 1, step).choice(LENGTHS))
        dice = Dice(seed + 1, step, device)
        clean, text = seen.batch(max(1, batch * LENGTHS[0] // frames), frames, dice, SILENT)
        time = dice.times(len(clean), late=LATE)
        return clean, text, dice.normal(*clean.shape), time

    def value(network: Any, *drawn: torch.Tensor) -> torch.Tensor:
        return objective(network, scheduler, *drawn)

    def judge(network: Any, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            for name, windows, fixed in (("loss_held_out", unseen, None), (f"loss_at_{DECIDED}", seen, DECIDED)):
                dice = Dice(seed + 2, 0, device)
                total = torch.zeros((), device=device)
                for _ in range(4):
                    clean, text = windows.batch(16, LENGTHS[0], dice)
                    time = dice.times(16) if fixed is None else torch.full((16,), fixed, device=device)
                    total += objective(network, scheduler, clean, text, dice.normal(*clean.shape), time) / 4
                found[name] = round(float(total), 4)
        return found

    return fit(model, Split(draw, value), settings, folder, name="unet", on_checkpoint=judge)


def export(autoencoder: Any, unet: Any, folder: Path, sources: Sources) -> Path:
    """Write the prior as a diffusers pipeline folder, weights in float16 safetensors, with the texts that it knows;
    the model card is kept apart."""
    import json

    import torch
    from diffusers import DDIMScheduler, UNet3DConditionModel
    from longtake.priors import KNOWS
    from longtake.text import SentenceEncoder
    from longtake.video.data import UNSAID
    from longtake.video.pipeline import LongVideoPipeline

    stock = UNet3DConditionModel(**UNET)
    stock.load_state_dict({key: value.cpu().contiguous() for key, value in unet.state_dict().items()})
    pipeline = LongVideoPipeline(
        vae=autoencoder.to("cpu").to(memory_format=torch.contiguous_format),
        text_encoder=SentenceEncoder(),
        tokenizer=None,
        unet=stock,
        scheduler=DDIMScheduler(**SCHEDULE),
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    known = list(dict.fromkeys(clip.wordings[0] for clip in sources.seen if clip.view in ("", UNSAID)))
    (folder / KNOWS).write_text(json.dumps(known, indent=0) + "\n")
    return folder


def whole(prepared: Path, minutes: float, out: Path) -> list[list[str]]:
    """The commands, as words after ``longtake``, that train both networks in ``minutes``; they leave ``out``/prior.

    Raises UserError for too few minutes.
    """
    if minutes <= BESIDE:
        raise UserError(f"the video prior needs more than {BESIDE:g} minutes")
    told = ["--minutes", f"{minutes - BESIDE:.3f}", "--out", str(out)]
    return [["train", "video", "--prepared", str(prepared), *told]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``longtake train video``."""
    from longtake.train import add_arguments as add_schedule
    from longtake.train import add_sources
    from longtake.video.data import Corpus

    add_sources(parser, "folder with kaykit_train.zip or emoji_train.zip, or a zip itself")
    parser.add_argument("--corpus", choices=[str(name) for name in Corpus], help="default: kaykit where it is there")
    parser.add_argument("--out", type=Path, default=Path("runs/train-video"), help="checkpoints, record, the prior")
    parser.add_argument("--autoencoder-steps", type=int, help="default 1,200; with --minutes as many as 3 of 10 give")
    parser.add_argument("--autoencoder-batch", type=int, help="frames a step (default 32, on a GPU 256)")
    parser.add_argument("--steps", type=int, help="UNet steps (default 2,200; with --minutes as many as they give)")
    parser.add_argument("--batch", type=int, help="times 16: frames a UNet step (default 8, on a GPU 60)")
    parser.add_argument(
        "--start-from", default=None, metavar="PRIOR", help="keep this prior's autoencoder and begin with its UNet"
    )
    add_schedule(parser)


def run(args: argparse.Namespace) -> int:
    """Train both networks, resuming what is there, and export the prior to ``--out``/prior."""
    from longtake.train import Settings, count, schedule, training_device
    from longtake.video.corpus import Sources
    from longtake.video.stop import report

    if args.prepare is not None and args.data is None:
        raise UserError("--prepare writes what --data holds: give --data, not --prepared")
    if args.prepared is not None:
        sources = Sources.load(args.prepared)
    else:
        from longtake.text import SentenceEncoder
        from longtake.video.data import load_clips

        sources = Sources.of(load_clips(args.data, args.corpus), SentenceEncoder())
    if args.prepare is not None:
        print(f"prepared data written to {sources.save(args.prepare)}")
        return 0
    large = training_device().type != "cpu"
    start = None
    if args.start_from is not None:
        autoencoder, start = _start_from(args.start_from)
    else:
        steps = count(args.autoencoder_steps, args, 1200)
        settings = Settings(steps, 2e-3, **schedule(args, AUTOENCODER_SHARE))
        batch = args.autoencoder_batch or (256 if large else 32)
        autoencoder = train_autoencoder(sources, args.out, settings, batch=batch, seed=args.seed)
    share = 1.0 if start is not None else 1 - AUTOENCODER_SHARE
    settings = Settings(count(args.steps, args, 2200), 1e-3, ema=0.9985, **schedule(args, share))
    batch = args.batch or (60 if large else 8)
    unet = train_unet(sources, autoencoder, args.out, settings, batch=batch, seed=args.seed, start=start)
    report(unet, autoencoder, sources, args.out, seed=args.seed)
    print(f"prior written to {export(autoencoder, unet, args.out / 'prior', sources)}")
    return 0


def _start_from(prior: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The autoencoder of a prior that this recipe made, and its UNet's weights."""
    from longtake.video.pipeline import LongVideoPipeline

    pipe = LongVideoPipeline.from_prior(prior)
    wrong = [key for key, value in UNET.items() if _plain(pipe.unet.config.get(key)) != _plain(value)]
    if wrong:
        raise UserError(f"{prior} is not a prior of this recipe: its UNet differs in {', '.join(sorted(wrong))}")
    return pipe.vae.eval(), pipe.unet.state_dict()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
