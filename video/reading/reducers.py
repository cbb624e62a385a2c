"""Ways to make a film's tokens fewer, all under one signature, none of which needs training.

    features, places = reduce("local", features, scores, budget=1024)

features: (T, H, W, D), float. scores: (T, H, W), how well each token fits the question, before any softmax; only the
last three look at it. Returns (N, D) with N <= budget, and (N, 3): the mean place (frame, row, column) of what each
token is made of, in order of time, row, column.

  uniform    whole frames at equal steps, thinned out where even one is too much
  average    means of windows
  merge      tokens of one place, joined along time where they are most alike (after ToMe, arXiv 2210.09461)
  norm       the tokens farthest from the film's mean token
  attention  the tokens that the others attend to most (after FastV, arXiv 2403.06764)
  tree       blocks of a quadtree that look alike are one token, and stay one while they do not change (after STTM)
  select     the tokens with the highest scores
  ppllava    windows weighted by the released double softmax (arXiv 2411.02327)
  local      windows weighted by one softmax in each
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from longtake.errors import UserError
from longtake.kernels.pooling.guided import WeightMode, prompt_guided_pool3d
from longtake.kernels.pooling.windows import Tail, Triple, resolve_windows
from longtake.video.reading.budget import kernel_for
from torch import Tensor

Reduced = tuple[Tensor, Tensor]
Reducer = Callable[[Tensor, Tensor, int], Reduced]
QUERIES = 512  # tokens that say what is attended to; all of them would take memory with the square of the film


def places_of(size: Triple, device: torch.device | str = "cpu") -> Tensor:
    """(T, H, W, 3) float32: frame, row and column of each token."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n), device=device) for n in size], indexing="ij"), -1)


def reduce(name: str, features: Tensor, scores: Tensor | None, budget: int) -> Reduced:
    """One of `REDUCERS` by name. Raises UserError for another name, shapes that do not fit, and a budget under 1."""
    if name not in REDUCERS:
        raise UserError(f"reducers are {', '.join(REDUCERS)}; {name!r} given")
    if features.dim() != 4 or (scores is not None and scores.shape != features.shape[:3]):
        given = None if scores is None else tuple(scores.shape)
        raise UserError(f"features are (T, H, W, D) and scores (T, H, W), {tuple(features.shape)} and {given} given")
    if budget < 1:
        raise UserError(f"a budget of at least 1 token, {budget} given")
    if scores is None:
        if name in NEED_SCORES:
            raise UserError(f"{name} needs scores for the question")
        scores = features.new_zeros(features.shape[:3])
    if budget >= math.prod(features.shape[:3]):
        return features.flatten(0, 2), places_of(_size(features), features.device).flatten(0, 2)
    return REDUCERS[name](features, scores, budget)


def _size(features: Tensor) -> Triple:
    frames, rows, columns = features.shape[:3]
    return frames, rows, columns


def _taken(features: Tensor, chosen: Tensor) -> Reduced:
    """The tokens at flat positions `chosen`, in order."""
    order = chosen.sort().values
    places = places_of(_size(features), features.device).flatten(0, 2)
    return features.flatten(0, 2)[order], places[order]


def _steps(length: int, count: int, device: torch.device) -> Tensor:
    """`count` of `length` positions at equal steps, each in the middle of its part."""
    return ((torch.arange(count, device=device) + 0.5) * length / count).long()


def uniform(features: Tensor, scores: Tensor, budget: int) -> Reduced:
    frames, rows, columns = _size(features)
    number = torch.arange(frames * rows * columns, device=features.device).view(frames, rows, columns)
    share = min(1.0, math.sqrt(budget / (rows * columns)))
    high, wide = max(1, int(rows * share)), max(1, int(columns * share))
    many = max(1, min(frames, budget // (high * wide)))
    number = number[_steps(frames, many, features.device)]
    number = number[:, _steps(rows, high, features.device)][:, :, _steps(columns, wide, features.device)]
    return _taken(features, number.flatten())


def _averaged(x: Tensor, kernel: Triple) -> Tensor:
    """Means of windows, short last ones kept: (T, H, W, D) -> (T', H', W', D)."""
    uniform = WeightMode.UNIFORM
    return prompt_guided_pool3d(x[None], kernel=kernel, tail=Tail.KEEP, weight_mode=uniform, layout="bthwc")[0]


def _windows(mode: WeightMode) -> Reducer:
    def pooled(features: Tensor, scores: Tensor, budget: int) -> Reduced:
        size = _size(features)
        kernel = kernel_for(size, budget)
        guide = None if mode is WeightMode.UNIFORM else scores[None].float()
        both = (features, places_of(size, features.device))
        done = [
            prompt_guided_pool3d(x[None], logits=guide, kernel=kernel, tail=Tail.KEEP, weight_mode=mode, layout="bthwc")
            for x in both
        ]
        assert resolve_windows(size, kernel, tail=Tail.KEEP).tokens <= budget
        return done[0].flatten(0, 3), done[1].flatten(0, 3)

    return pooled


def merge(features: Tensor, scores: Tensor, budget: int) -> Reduced:
    size = _size(features)
    if size[1] * size[2] > budget:  # a token of each place is too much: places are joined first
        kernel = kernel_for((1, size[1], size[2]), budget)
        places = _averaged(places_of(size, features.device), kernel)
        features = _averaged(features, kernel)
    else:
        places = places_of(size, features.device)
    alike = F.cosine_similarity(features[1:].float(), features[:-1].float(), dim=-1)
    joints = features[..., 0].numel() - budget
    begins = torch.ones(features.shape[:3], dtype=torch.bool, device=features.device)
    if joints > 0:
        least = alike.flatten().topk(joints).indices
        begins[1:].view(-1)[least] = False
    return _joined(features, places, begins)


def _joined(features: Tensor, places: Tensor, begins: Tensor) -> Reduced:
    """Means of runs along time. begins: (T, H, W) bool, where a run begins; features (T, H, W, D)."""
    run = begins.flatten(1).T.flatten().long().cumsum(0) - 1  # place by place, each place begins a run
    count = int(run[-1]) + 1

    def means(x: Tensor) -> Tensor:
        flat = x.flatten(1, 2).transpose(0, 1).flatten(0, 1).float()
        total = flat.new_zeros(count, flat.shape[-1]).index_add_(0, run, flat)
        return total / torch.bincount(run, minlength=count)[:, None]

    return _in_order(means(features).to(features.dtype), means(places))


def _in_order(features: Tensor, places: Tensor) -> Reduced:
    span = places.amax(0) + 1
    order = ((places[:, 0] * span[1] + places[:, 1]) * span[2] + places[:, 2]).argsort(stable=True)
    return features[order], places[order]


def norm(features: Tensor, scores: Tensor, budget: int) -> Reduced:
    flat = features.flatten(0, 2).float()
    return _taken(features, (flat - flat.mean(0)).norm(dim=-1).topk(budget).indices)


def attention(features: Tensor, scores: Tensor, budget: int) -> Reduced:
    flat = features.flatten(0, 2).float()
    asked = flat[_steps(len(flat), min(QUERIES, len(flat)), flat.device)]
    weights = (asked @ flat.T / math.sqrt(flat.shape[1])).softmax(-1).mean(0)
    return _taken(features, weights.topk(budget).indices)


def tree(features: Tensor, scores: Tensor, budget: int) -> Reduced:
    levels = _levels(features.float())
    low, high, best = -1.0, 1.0, _nodes(levels, -1.01)
    for _ in range(20):  # halving: the strictest likeness whose nodes fit
        middle = (low + high) / 2
        nodes = _nodes(levels, middle)
        if int(nodes[1].sum()) <= budget:
            low, best = middle, nodes
        else:
            high = middle
    owner, begins = best
    size = _size(features)
    if int(begins.sum()) > budget:  # even the coarsest are too many: the film's corners keep the blocks apart
        return _windows(WeightMode.UNIFORM)(features, scores, budget)
    number = begins.flatten().long().cumsum(0) - 1  # of nodes, frame by frame
    ids = torch.where(begins, number.view(size), torch.zeros((), dtype=torch.long, device=features.device))
    for frame in range(size[0]):  # a token belongs to its block's corner, a corner that goes on to the one before
        at = ids[frame].clone()
        if frame:
            at = torch.where(begins[frame], at, ids[frame - 1])
        ids[frame] = at.flatten()[owner[frame].flatten()].view(at.shape)
    count = int(begins.sum())

    def means(x: Tensor) -> Tensor:
        total = x.new_zeros(count, x.shape[-1], dtype=torch.float32).index_add_(
            0, ids.flatten(), x.flatten(0, 2).float()
        )
        return total / torch.bincount(ids.flatten(), minlength=count)[:, None]

    return _in_order(means(features).to(features.dtype), means(places_of(size, features.device)))


def _levels(features: Tensor) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """For blocks of 1, 2, 4, ... tokens: side, the least likeness of a token to its block's mean and the likeness of
    that mean to the one a frame before, both (T, H, W) at each token, and the flat position of the block's corner."""
    frames, rows, columns = features.shape[:3]
    found = []
    side = 1
    y, x = torch.arange(rows, device=features.device), torch.arange(columns, device=features.device)
    while True:
        high, wide = -(-rows // side), -(-columns // side)
        block = (y // side)[:, None] * wide + (x // side)[None]
        sums = features.new_zeros(frames, high * wide, features.shape[-1])
        sums.index_add_(1, block.flatten(), features.flatten(1, 2))
        mean = sums[:, block.flatten()].view(features.shape)
        like = F.cosine_similarity(features, mean, dim=-1)
        least = like.new_full((frames, high * wide), 2.0)
        least.scatter_reduce_(1, block.flatten().expand(frames, -1), like.flatten(1), "amin")
        before = like.new_full(like.shape, -2.0)
        before[1:] = F.cosine_similarity(mean[1:], mean[:-1], dim=-1)
        corner = (y // side * side)[:, None] * columns + (x // side * side)[None]
        found.append((side, least[:, block.flatten()].view(like.shape), before, corner.expand(like.shape)))
        if side >= max(rows, columns):
            return found
        side *= 2


def _nodes(levels: list[tuple[int, Tensor, Tensor, Tensor]], likeness: float) -> tuple[Tensor, Tensor]:
    """The tree for one likeness: for each token its block's corner (flat), and where a node begins (at corners)."""
    _, least, before, owner = levels[0]
    level = torch.zeros_like(owner)
    still = before.clone()
    for number, (_, least, before, corner) in enumerate(levels[1:], 1):
        joined = least >= likeness
        owner = torch.where(joined, corner, owner)
        level = torch.where(joined, number, level)
        still = torch.where(joined, before, still)
    flat = torch.arange(owner[0].numel(), device=owner.device).view(owner.shape[1:])
    begins = owner == flat
    goes_on = torch.zeros_like(begins)
    goes_on[1:] = (still[1:] >= likeness) & (level[1:] == level[:-1]) & (owner[1:] == owner[:-1])
    return owner, begins & ~goes_on


def select(features: Tensor, scores: Tensor, budget: int) -> Reduced:
    return _taken(features, scores.flatten().topk(budget).indices)


REDUCERS: dict[str, Reducer] = {
    "uniform": uniform,
    "average": _windows(WeightMode.UNIFORM),
    "merge": merge,
    "norm": norm,
    "attention": attention,
    "tree": tree,
    "select": select,
    "ppllava": _windows(WeightMode.PPLLAVA),
    "local": _windows(WeightMode.LOCAL),
}
NEED_SCORES = ("select", "ppllava", "local")
