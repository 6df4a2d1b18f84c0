"""What two or three ranks say to each other in tests/policy/test_ranks.py."""

from __future__ import annotations

import os
import sys
import time

import torch

from cohort.policy import ranks
from cohort.policy.packed.pack import Part
from cohort.types import UserError


def talk() -> None:
    ranks.join(60, use_cpu=True)
    n, me = ranks.count(), ranks.number()
    items = list(range(5))
    own = [10 * i for i in ranks.share(items)]
    assert ranks.merged(own, "items") == [0, 10, 20, 30, 40], own
    assert ranks.gather(me, "numbers") == list(range(n)) and ranks.from_main(lambda: me, "main") == 0
    assert ranks.any_of([me == 1, False, True], "flags") == [True, False, True]
    assert ranks.merged([torch.ones(1)] if me == 0 else [], "few")[0].item() == 1

    ids = [torch.arange(length) for length in (4, 1, 3, 6, 2)]
    parts = [Part(0, torch.zeros(3), range(3), ids[:3]), Part(1, torch.zeros(2), range(2), ids[3:])]
    of_rank = ranks.dealt(parts)
    rows = ranks.concatenated([(part.group, r) for part in of_rank for r in part.rows], "rows")
    assert sorted(rows) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], rows
    assert len(ranks.concatenated([part.group for part in ranks.dealt(parts, whole=True)], "groups")) == 2

    def of_parts(own: list[Part]) -> dict[tuple[int, int], int]:
        pairs = [(part, zip(part.rows, part.completion_ids, strict=True)) for part in own]
        return {(part.group, r): len(ids) for part, both in pairs for r, ids in both}

    lengths = ranks.union(parts, of_parts, "lengths")
    assert lengths == {(0, 0): 4, (0, 1): 1, (0, 2): 3, (1, 0): 6, (1, 1): 2}, lengths

    a, b, frozen = (torch.nn.Parameter(torch.zeros(3, 2)) for _ in range(3))
    a.grad = torch.full((3, 2), float(me + 1))
    if me == n - 1:
        b.grad = torch.ones(3, 2, dtype=torch.float32)
    ranks.BUCKET = 7
    ranks.sum_gradients([a, b, frozen])
    assert a.grad.eq(n * (n + 1) / 2).all() and b.grad.eq(1).all() and frozen.grad.eq(0).all()

    tries: list[int] = []

    def run(size: int) -> int:
        tries.append(size)
        if me == 1 and size > 4:
            raise MemoryError("here")
        return size

    assert ranks.retry_together(run, 16, lambda: 1, "again with %d", "trying") == (4, 4) and tries == [16, 8, 4]

    weight = torch.full((2,), float(me))
    ranks.make_equal([weight])
    assert weight.eq(0).all()
    try:
        ranks.require_agreement({"setting beta": 0.04, "data": "abc" if me != 1 else "abd"})
        raise SystemExit("not told")
    except UserError as error:
        assert "rank 1 has another data than rank 0: 'abd' instead of 'abc'" in str(error), error
    print("well", me)


def end(how: str) -> None:
    """Rank 1 ends in the middle."""
    ranks.join(3 if how == "hang" else 60, use_cpu=True)
    ranks.at_step(7)
    ranks.gather(0, "the first")
    if ranks.number() == 1:
        if how == "raise":
            raise ZeroDivisionError("in a reward")
        if how == "kill":
            os.kill(os.getpid(), 9)
        time.sleep(5)
        sys.exit(3)
    try:
        ranks.gather(0, "the sampled groups")
    except ranks.LostRank as error:
        print(error)
        sys.exit(2)


def main(what: str) -> None:
    if what == "talk":
        talk()
    else:
        end(what)
