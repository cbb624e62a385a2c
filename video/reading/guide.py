"""PromptGuide: how well each place of a film fits a question, and what prompt-guided pooling makes of that.

A guide is the two towers of CLIP or SigLIP. Each patch goes through the tower's own last normalisation and projection
as if it were the whole picture; its score is exp(logit_scale) times the cosine with the question (PPLLaVA, arXiv
2411.02327, section 3.2; public code d5766c8). `weights` "ppllava" is the released double softmax; "local" one softmax
in each window.

Shapes: B films, T frames, H and W patches of a frame, C channels of the tower, P width of the common space.

    guide = PromptGuide.from_folder("clip-vit-large-patch14-336")
    scores = guide(frames, ["where is the dog?"])                  # (B, T, H, W), before any softmax
    print(explain(scores, kernel=(2, 3, 3), mode="ppllava"))       # how much the guidance really does
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.kernels.pooling.guided import WeightMode, global_weights, window_weights
from longtake.kernels.pooling.windows import Tail, Triple, resolve_windows
from torch import Tensor, nn


class ClipHead(nn.Module):
    """The parts of CLIP that a guide needs; keys as in PPLLaVA's projector less their "clip_"."""

    text_model: Any
    visual_ln: nn.Module
    visual_projection: nn.Module
    text_projection: nn.Module

    def __init__(self, text_model: nn.Module, hidden: int, text_hidden: int, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.text_model = text_model
        self.visual_ln = nn.LayerNorm(hidden, eps=eps)
        self.visual_projection = nn.Linear(hidden, width, bias=False)
        self.text_projection = nn.Linear(text_hidden, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100.0)), requires_grad=False)

    def patches(self, hidden: Tensor) -> Tensor:
        """Hidden states of patches (..., C) -> (..., P), not normalised."""
        return self.visual_projection(self.visual_ln(hidden))

    def text(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) -> (B, P). The tower is causal and read at the end token: no mask has an effect."""
        with torch.no_grad():
            pooled = self.text_model(input_ids=ids).pooler_output
            return self.text_projection(pooled)

    def scores(self, hidden: Tensor, text: Tensor) -> Tensor:
        """hidden (B, T, H, W, C), text (B, P) -> scores (B, T, H, W) in float32: exp(logit_scale) * cosine."""
        return self.logit_scale.float().exp() * self.cosine(hidden, text)

    def weights(self, hidden: Tensor, text: Tensor) -> Tensor:
        """g (B, T, H, W), the released first softmax: over all tokens of a film."""
        return global_weights(self.scores(hidden, text))

    def cosine(self, hidden: Tensor, text: Tensor) -> Tensor:
        """hidden (B, T, H, W, C), text (B, P) -> cosine (B, T, H, W) in float32."""
        seen = F.normalize(self.patches(hidden).float(), dim=-1)
        return torch.einsum("bthwp,bp->bthw", seen, F.normalize(text.float(), dim=-1))


class SiglipHead(ClipHead):
    """SigLIP's: a patch goes through the value slice of the pooling head and its MLP. `logit_bias` has no effect on a
    softmax and is kept for its key alone. sharpen: PPLLaVA's `valuew_plus`: `weights` are g times 1000 times the
    head's own attention, as released (they do not sum to 1); `scores` have its logarithm added."""

    visual_head: Any

    def __init__(self, text_model: nn.Module, visual_ln: nn.Module, head: nn.Module, sharpen: bool = False) -> None:
        nn.Module.__init__(self)
        self.text_model, self.visual_ln, self.visual_head, self.sharpen = text_model, visual_ln, head, sharpen
        self.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.logit_bias = nn.Parameter(torch.zeros(()), requires_grad=False)

    def patches(self, hidden: Tensor) -> Tensor:
        attention: Any = self.visual_head.attention
        width = attention.embed_dim
        value = F.linear(
            self.visual_ln(hidden), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
        )
        return value + self.visual_head.mlp(self.visual_head.layernorm(value))

    def text(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return self.text_model(input_ids=ids).pooler_output

    def scores(self, hidden: Tensor, text: Tensor) -> Tensor:
        scores = super().scores(hidden, text)
        return scores + self.attention_share(hidden).log() if self.sharpen else scores

    def weights(self, hidden: Tensor, text: Tensor) -> Tensor:
        g = global_weights(super().scores(hidden, text))
        return 1000 * g * self.attention_share(hidden) if self.sharpen else g

    def attention_share(self, hidden: Tensor) -> Tensor:
        """Mean over heads of the attention that the head's probe pays each patch of its frame: (B, T, H, W)."""
        attention: Any = self.visual_head.attention
        width, heads = attention.embed_dim, attention.num_heads
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        query = F.linear(self.visual_head.probe[0, 0], weight[:width], bias[:width]).view(heads, -1)
        key = F.linear(self.visual_ln(hidden), weight[width : 2 * width], bias[width : 2 * width])
        logits = torch.einsum("bthwnd,nd->bthwn", key.unflatten(-1, (heads, -1)), query) / math.sqrt(width // heads)
        shape = logits.shape
        return logits.float().flatten(2, 3).softmax(2).view(shape).mean(-1)


class PromptGuide(nn.Module):
    """CLIP or SigLIP of transformers as a guide: frames and questions -> scores (B, T, H, W).

    model: CLIPModel or SiglipModel. tokenizer: its own, for questions given as text. layer: which hidden state of the
    vision tower is used, -2 as in LLaVA. The text tower stays frozen, `logit_scale` too.
    Raises UserError for another model.
    """

    def __init__(self, model: Any, tokenizer: Any = None, layer: int = -2, sharpen: bool = False) -> None:
        super().__init__()
        kind = model.config.model_type
        if kind not in ("clip", "siglip"):
            raise UserError(f"a guide is a CLIP or SigLIP model, {kind} was given")
        self.tower, self.tokenizer, self.layer, self.kind = model.vision_model, tokenizer, layer, kind
        after = model.vision_model.post_layernorm
        self.head: ClipHead
        if kind == "clip":
            sizes = after.normalized_shape[0], model.text_projection.in_features, model.text_projection.out_features
            self.head = ClipHead(model.text_model, *sizes)
            self.head.visual_ln = after
            self.head.visual_projection = model.visual_projection
            self.head.text_projection = model.text_projection
        else:
            if getattr(model.vision_model, "head", None) is None:
                raise UserError("this SigLIP has no pooling head (vision_use_head is off), which a guide needs")
            self.head = SiglipHead(model.text_model, after, model.vision_model.head, sharpen)
            self.head.logit_bias = nn.Parameter(model.logit_bias.detach().clone().squeeze(), requires_grad=False)
        self.head.logit_scale = nn.Parameter(model.logit_scale.detach().clone().squeeze(), requires_grad=False)
        self.head.text_model.requires_grad_(False)

    @classmethod
    def from_folder(cls, folder: str | Path, **settings: Any) -> "PromptGuide":
        """From a folder (or a name, where the hub is reachable) with a CLIP or SigLIP model and its tokenizer."""
        from transformers import AutoModel, AutoTokenizer

        return cls(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), **settings)

    @property
    def most_tokens(self) -> int:
        """Tokens that a question may have; 77 or 64, 248 or 196 after `stretch_text_tower`."""
        return int(self.head.text_model.embeddings.position_embedding.weight.shape[0])

    def text(self, questions: Sequence[str] | Tensor) -> Tensor:
        """Questions, or their token ids (B, L), -> (B, P). A text longer than `most_tokens` is cut, as in training."""
        if isinstance(questions, Tensor):
            return self.head.text(questions)
        if self.tokenizer is None:
            raise UserError("this guide has no tokenizer; give token ids, or PromptGuide(model, tokenizer)")
        most = self.most_tokens
        found = self.tokenizer(
            list(questions), padding="max_length", truncation=True, max_length=most, return_tensors="pt"
        )
        return self.head.text(found["input_ids"].to(self.head.logit_scale.device))

    def see(self, frames: Tensor) -> Tensor:
        """Prepared frames (B, T, 3, S, S) -> hidden states of the patches (B, T, H, W, C)."""
        states = self.tower(frames.flatten(0, 1), output_hidden_states=True).hidden_states[self.layer]
        return self.grid(states, len(frames))

    def grid(self, hidden: Tensor, films: int) -> Tensor:
        """Hidden states of a tower of this kind (B * T, L, C), CLS still there for CLIP, -> (B, T, H, W, C)."""
        hidden = hidden[:, 1:] if self.kind == "clip" else hidden
        side = math.isqrt(hidden.shape[1])
        if side * side != hidden.shape[1]:
            raise UserError(f"{hidden.shape[1]} patches a frame are no square")
        return hidden.unflatten(1, (side, side)).unflatten(0, (films, -1))

    def scores(self, hidden: Tensor, text: Tensor) -> Tensor:
        """Hidden states of patches (B, T, H, W, C) and text (B, P) -> scores (B, T, H, W)."""
        return self.head.scores(hidden, text)

    def forward(self, frames: Tensor, questions: Sequence[str] | Tensor) -> Tensor:
        return self.scores(self.see(frames), self.text(questions))


@dataclass(frozen=True)
class Effect:
    """What the guidance does. g: (B, T, H, W), sums to 1. weights: (B, *output, *kernel), sum to 1 in a window.
    entropy: of each window's weights over that of plain averaging, (B, *output): 1 is plain average, 0 one token."""

    g: Tensor
    weights: Tensor
    entropy: Tensor
    mode: str

    @property
    def mean_entropy(self) -> float:
        return float(self.entropy.mean())

    @property
    def sharp(self) -> float:
        """Share of windows whose largest weight is more than twice that of plain averaging."""
        size = (self.weights.flatten(4) > 0).sum(-1)
        return float((self.weights.flatten(4).amax(-1) * size > 2).float().mean())

    def histogram(self, bins: int = 10) -> list[int]:
        """How many windows have a largest weight in [0, 0.1), [0.1, 0.2), ..."""
        return [int(n) for n in torch.histc(self.weights.flatten(4).amax(-1).float(), bins, 0.0, 1.0)]

    def __str__(self) -> str:
        return (
            f"{self.mode}: relative entropy of the windows {self.mean_entropy:.4f} (1 is plain average), "
            f"{100 * self.sharp:.1f} % of windows lean on one token; largest weight by tenths {self.histogram()}"
        )


def explain(
    scores: Tensor,
    kernel: int | Triple,
    stride: int | Triple | None = None,
    mode: WeightMode | str = WeightMode.PPLLAVA,
    tail: Tail | str = Tail.KEEP,
    temperature: float | None = None,
) -> Effect:
    """What pooling with these scores (B, T, H, W) would weigh; arguments as for `prompt_guided_pool3d`."""
    _, frames, rows, columns = scores.shape
    windows = resolve_windows((frames, rows, columns), kernel, stride, None, tail)
    guided = None if WeightMode(mode) is WeightMode.UNIFORM else scores
    share = window_weights(windows, logits=guided, weight_mode=mode, temperature=temperature, batch=len(scores))
    there = window_weights(windows, weight_mode=WeightMode.UNIFORM, batch=len(scores)) > 0
    flat = share.flatten(4)
    most = there.flatten(4).sum(-1).clamp(min=2).log()
    entropy = -(flat * flat.clamp(min=1e-38).log()).sum(-1) / most
    entropy = torch.where(there.flatten(4).sum(-1) > 1, entropy, torch.ones_like(entropy))
    return Effect(global_weights(scores), share, entropy, str(WeightMode(mode)))
