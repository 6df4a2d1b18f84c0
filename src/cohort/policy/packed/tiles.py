"""The attention of packed groups tile by tile, so that no attention scores are kept.

The scores of a tile fit the processor's cache. They are computed, used and dropped, and computed again for the
gradient. All products are batched matrix products. A prompt's keys are multiplied with the queries of all its
completions in one product; where a copy of the keys is small beside the scores, each completion has a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SCORES, SCORES_OF_A_CARD = 2**20, 2**25
"""Scores of one tile. With the tensors computed from them they take 6 to 12 MB; a quarter of it, and four times as
many, are slower on a CPU. On a card, where a tile should keep all of it at work, they take 200 to 400 MB."""
BLOCK = 256
"""Tokens of a block. Longer sequences are cut into blocks, so that most of what a causal mask hides is not computed."""
SHORT = 128
"""With fewer keys, PyTorch's bfloat16 softmax on the CPU takes up to four times as long as the float32 one."""
COPIED = 1
"""Shared keys are copied for each row where a row has at least this many queries per feature of a key. Then one product
computes all scores in place; two products that each write a part of them are done row by row in MKL."""
TILE, TILE_OF_A_CARD = 2**16, 2**22
"""The overhead of one more tile, counted in scores. Problems of unequal shapes share a tile where padding them costs
fewer scores than this. On a card it is the time to launch some twenty operations."""
LOOK = 64
"""The most shapes that may share a tile."""

Shape = tuple[int, int, int]
"""Shared keys, rows, tokens of the longest row."""


class TokenRun(NamedTuple):
    """Consecutive tokens: a prompt, a completion, or a block of one."""

    places: np.ndarray
    """Indices into the stream."""
    keys_only: int = 0
    """The first so many tokens have their queries in another run: here they are keys and values only."""

    def block(self, start: int) -> TokenRun:
        """The BLOCK of tokens from `start`."""
        return TokenRun(self.places[start : start + BLOCK], max(0, self.keys_only - start))

    @property
    def has_queries(self) -> bool:
        return self.keys_only < len(self.places)


class Problem(NamedTuple):
    """A piece of attention: the queries of `rows`, whose lengths are similar, attend to all keys `shared` and,
    causally, to the keys of their own row."""

    shared: np.ndarray
    rows: list[TokenRun]

    @property
    def shape(self) -> Shape:
        return len(self.shared), len(self.rows), max(len(row.places) for row in self.rows)


PlacedGroup = tuple[np.ndarray, list[TokenRun]]
"""The indices of a prompt's tokens, and its completions."""


def problems(prompt: np.ndarray, completions: list[TokenRun], only_read: bool = False) -> list[Problem]:
    """The attention of one group. `only_read`: of a prompt, the last token's queries only."""
    whole = TokenRun(prompt)
    if only_read:
        pieces = [Problem(prompt[:-1], [TokenRun(prompt[-1:])])]
    else:
        pieces = [Problem(prompt[:i], [whole.block(i)]) for i in range(0, max(1, len(prompt)), BLOCK)]
    rows: list[TokenRun] = []
    for row in sorted(completions, key=lambda row: -len(row.places)):
        for start in range(BLOCK, len(row.places), BLOCK):
            if (block := row.block(start)).has_queries:
                pieces.append(Problem(np.concatenate([prompt, row.places[:start]]), [block]))
        if not (first := row.block(0)).has_queries:
            continue
        if rows and len(first.places) < len(rows[0].places) / 2:
            pieces.append(Problem(prompt, rows))
            rows = []
        rows.append(first)
    return [*pieces, Problem(prompt, rows)] if rows else pieces


def tiles_of_groups(
    groups: list[PlacedGroup], only_read: bool, tokens: int, K: int, rep: int, device: torch.device
) -> list[Tile]:
    """The attention of a stream of `tokens` tokens as tiles; K heads of keys, `rep` query heads for each."""
    pieces = [problem for prompt, rows in groups for problem in problems(prompt, rows, only_read)]
    return tiles(pieces, tokens, K, rep, device)


@dataclass(frozen=True)
class Tile:
    """U problems, each for one of K key/value heads. Indices are token * K + head; padding has the index behind the
    last."""

    own: Tensor
    """[U * R * C], indices of the rows' queries."""
    own_keys: Tensor
    """[U * R * C], indices of the rows' keys, those without queries included."""
    own_read: Tensor
    """The same, with index 0 for padding, so that it can be read."""
    shared: Tensor
    """[U * L], indices of the shared keys."""
    shared_read: Tensor
    shape: tuple[int, int, int, int]
    """U, L, R, C."""
    causal: Tensor
    """[C * rep, C], 0 where a query attends to a key of its row, else a large negative number."""
    padding: Tensor | None
    """[U, 1, L], the same for shared keys; None where none is padding."""


def tiles(pieces: list[Problem], tokens: int, K: int, rep: int, device: torch.device) -> list[Tile]:
    """Batch problems of similar shapes, and split the rows of large ones, so that a tile has at most SCORES scores, or
    on a card SCORES_OF_A_CARD; one row for one head may have more."""
    made: list[Tile] = []
    largest, overhead = (SCORES, TILE) if device.type == "cpu" else (SCORES_OF_A_CARD, TILE_OF_A_CARD)

    def size(shape: Shape) -> int:
        L, R, C = shape
        return R * C * rep * (L + C)

    by_shape: dict[Shape, list[Problem]] = {}
    for problem in pieces:
        L, _, C = problem.shape
        most = max(1, largest // size((L, 1, C)))
        for i in range(0, len(problem.rows), most):
            piece = Problem(problem.shared, problem.rows[i : i + most])
            by_shape.setdefault(piece.shape, []).append(piece)
    shapes = sorted(by_shape, reverse=True)
    for first, last, shape in _batches(shapes, [K * len(by_shape[shape]) for shape in shapes], size, overhead):
        units = [(piece, head) for s in shapes[first:last] for piece in by_shape[s] for head in range(K)]
        count = max(1, largest // size(shape))
        made.extend(_tile(units[i : i + count], shape, tokens, K, rep, device) for i in range(0, len(units), count))
    return made


def _batches(
    shapes: list[Shape], counts: list[int], size: Callable[[Shape], int], overhead: int
) -> list[tuple[int, int, Shape]]:
    """Cut the sorted shapes, `counts` problems of each, into runs that share a tile's shape: (first, last + 1, the
    shape that fits all). The cut with the fewest scores, a tile counted as `overhead` of them, by dynamic
    programming."""
    best: list[tuple[int, int, Shape]] = [(0, 0, (0, 0, 0))]
    """For the shapes up to each: the fewest scores, where the last run begins, the shape that fits that run."""
    for last in range(1, len(shapes) + 1):
        whole, units, ways = (0, 0, 0), 0, []
        for first in range(last - 1, max(-1, last - 1 - LOOK), -1):
            a, b = whole, shapes[first]
            whole = max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2])
            units += counts[first]
            ways.append((best[first][0] + units * size(whole) + overhead, first, whole))
        best.append(min(ways))
    runs, last = [], len(shapes)
    while last:
        _, first, whole = best[last]
        runs.append((first, last, whole))
        last = first
    return runs[::-1]


def _tile(
    units: list[tuple[Problem, int]], shape: tuple[int, int, int], tokens: int, K: int, rep: int, device: torch.device
) -> Tile:
    L, R, C = shape
    nowhere = tokens * K
    distinct = {id(problem): problem for problem, _ in units}
    rows, keys = np.full((len(distinct), R, C), -1), np.full((len(distinct), L), -1)
    without_query = np.zeros((len(distinct), R, C), dtype=bool)
    for p, problem in enumerate(distinct.values()):
        keys[p, : len(problem.shared)] = problem.shared
        for r, (row, keys_only) in enumerate(problem.rows):
            rows[p, r, : len(row)] = row
            without_query[p, r, :keys_only] = True
    number = {key: p for p, key in enumerate(distinct)}
    of_unit = np.array([number[id(problem)] for problem, _ in units])
    heads = np.array([head for _, head in units])
    own, shared = rows[of_unit], keys[of_unit]
    own = np.where(own < 0, nowhere, own * K + heads[:, None, None])
    queries = np.where(without_query[of_unit], nowhere, own) if without_query.any() else own
    shared = np.where(shared < 0, nowhere, shared * K + heads[:, None])

    def places(array: np.ndarray) -> tuple[Tensor, Tensor]:
        padded = torch.from_numpy(array.ravel()).to(device)
        whole = bool((array < nowhere).all())
        return padded, padded if whole else torch.where(padded == nowhere, 0, padded)

    lower = torch.ones(C, C, dtype=torch.bool, device=device).tril()
    seen = shared < nowhere
    own_keys, own_read = places(own)
    return Tile(
        own_keys if queries is own else torch.from_numpy(queries.ravel()).to(device),
        own_keys,
        own_read,
        *places(shared),
        (len(units), L, R, C),
        _mask(lower.repeat_interleave(rep, 0)),
        None if seen.all() else _mask(torch.from_numpy(seen).to(device)).view(len(units), 1, L),
    )


def _mask(visible: Tensor) -> Tensor:
    """0 where visible, else a large negative number in bfloat16's range."""
    return torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, -1e30)


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis in the scores' dtype, by the faster of two ways."""
    if scores.dtype is torch.bfloat16 and scores.shape[-1] < SHORT:
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(-1).to(scores.dtype)  # under autocast on CUDA softmax returns float32


def attend_tiles(
    q: Tensor, k: Tensor, v: Tensor, plan: list[Tile], scale: float, known: Tensor | None = None
) -> Tensor:
    """q [T, H, D], k and v [T, K, D] to [T, H, D] by the tiles of a layout. `known`: the result, where only the
    backward pass is to compute; queries are scaled already then."""
    result: Tensor = TiledAttention.apply(q, k, v, plan, scale, () if known is None else (known,))  # type: ignore[no-untyped-call]  # torch's
    return result


class TiledAttention(torch.autograd.Function):
    """q [T, H, D], k and v [T, K, D] of a packed stream to [T, H, D]. A row whose query is in no tile holds anything.
    `known`: the result in a tuple, where it need not be computed; queries are scaled then."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: list[Tile], scale: float, known: tuple[Tensor, ...] = ()
    ) -> Tensor:
        (T, H, D), K = q.shape, k.shape[1]
        ctx.plan, ctx.scale, ctx.still_to_scale = plan, scale, 1.0 if known else scale
        ctx.save_for_backward(q, k, v)
        if known:
            return known[0]
        out = q.new_empty(T * K + 1, H // K * D)
        for tile in plan:
            work = _Work(tile, q, k, v, scale)
            result = work.sums(work.weights(), work.v_own, work.v_shared)
            out.index_copy_(0, tile.own, result.view(-1, out.shape[1]))
        return out[:-1].view(T, H, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v = ctx.saved_tensors
        (T, H, D), K = q.shape, k.shape[1]
        gq = q.new_zeros(T * K + 1, H // K * D)  # the tiles may leave queries out
        gk, gv = (k.new_zeros(T * K + 1, D, dtype=torch.promote_types(k.dtype, torch.float32)) for _ in range(2))
        grads = torch.cat([grad.reshape(T * K, -1), grad.new_zeros(1, H // K * D)])  # padding has no gradient
        for tile in ctx.plan:
            work = _Work(tile, q, k, v, ctx.still_to_scale)
            g = grads.index_select(0, tile.own).view(work.q.shape)
            weights = work.weights()
            slopes = work.products(g, work.v_own, work.v_shared)
            slopes = torch._softmax_backward_data(slopes, weights, -1, weights.dtype)
            for total, of_scores, rows in ((gk, slopes, work.q), (gv, weights, g)):
                own, shared = work.transposed(of_scores, rows)
                total.index_add_(0, tile.own_keys, own.reshape(-1, D).to(total.dtype))
                if shared is not None:
                    total.index_add_(0, tile.shared, shared.reshape(-1, D).to(total.dtype))
            result = work.sums(slopes, work.k_own, work.k_shared).mul_(ctx.scale)
            gq.index_copy_(0, tile.own, result.view(-1, gq.shape[1]))
        gk, gv = (x[:-1].view(T, K, D).to(k.dtype) for x in (gk, gv))
        return gq[:-1].view(T, H, D), gk, gv, None, None, None


class _Work:
    """The inputs of a tile: scaled queries [U, R * C * rep, D], keys and values of the rows [U * R, C, D] and shared
    ones [U, L, D]. Scores are [U, R * C * rep, L + C], shared keys first."""

    def __init__(self, tile: Tile, q: Tensor, k: Tensor, v: Tensor, scale: float):
        U, self.L, R, C = tile.shape
        T, K, D = k.shape
        self.tile, self.rows = tile, (U * R, -1)
        queries, keys, values = q.reshape(T * K, -1), k.reshape(T * K, D), v.reshape(T * K, D)
        self.q = queries.index_select(0, tile.own_read).view(U, -1, D)
        if scale != 1.0:
            self.q.mul_(scale)
        self.k_own, self.v_own = (x.index_select(0, tile.own_read).view(U * R, C, D) for x in (keys, values))
        self.k_shared, self.v_shared = (x.index_select(0, tile.shared_read).view(U, -1, D) for x in (keys, values))

    def products(self, rows: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """[U, R * C * rep, L + C], the product of each query row with the vector of each key."""
        _, C, D = own.shape
        queries = rows.view(*self.rows, D)
        if queries.shape[1] >= COPIED * D:
            keys = torch.cat([shared.repeat_interleave(len(own) // len(rows), 0), own], 1)
            return torch.bmm(queries, keys.transpose(1, 2)).view(*rows.shape[:2], self.L + C)
        scores = rows.new_empty(*rows.shape[:2], self.L + C)
        if self.L:
            torch.bmm(rows, shared.transpose(1, 2), out=scores[..., : self.L])
        by_row = scores.view(*self.rows, self.L + C)
        torch.bmm(queries, own.transpose(1, 2), out=by_row[..., self.L :])
        return scores

    def weights(self) -> Tensor:
        """The softmax of the scores."""
        scores = self.products(self.q, self.k_own, self.k_shared)
        scores.view(*self.rows, scores.shape[-1])[..., self.L :].add_(self.tile.causal)
        if self.tile.padding is not None:
            scores[..., : self.L].add_(self.tile.padding)
        return softmax(scores)

    def sums(self, of_scores: Tensor, own: Tensor, shared: Tensor) -> Tensor:
        """[U, R * C * rep, D], the sum over keys of the number at each key times its vector."""
        by_row = of_scores.view(*self.rows, of_scores.shape[-1])[..., self.L :]
        if not self.L:
            return torch.bmm(by_row, own).view(self.q.shape)
        totals = torch.bmm(of_scores[..., : self.L], shared)
        totals.view(*self.rows, totals.shape[-1]).baddbmm_(by_row, own)
        return totals

    def transposed(self, of_scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """For the rows' keys [U * R, C, D] and the shared ones [U, L, D], the sum over queries of the number at each
        times its vector."""
        # In this order the numbers are read in place; their transpose would be copied.
        by_row = of_scores.view(*self.rows, of_scores.shape[-1])[..., self.L :]
        own = torch.bmm(rows.view(*self.rows, rows.shape[-1]).transpose(1, 2), by_row).transpose(1, 2)
        if not self.L:
            return own, None
        return own, torch.bmm(rows.transpose(1, 2), of_scores[..., : self.L]).transpose(1, 2)
