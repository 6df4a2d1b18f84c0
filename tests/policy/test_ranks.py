"""What ranks tell each other, on gloo: shares and their union, sums of gradients, and the ends of a rank."""

from __future__ import annotations

import pytest
import torch

from cohort.policy import ranks
from cohort.policy.packed.pack import Part
from cohort.types import UserError
from launching import Ended, Ranks, launch


def test_ranks_share_and_join_and_tell_of_a_lost_one() -> None:
    """After a crash, a kill, and a rank that does not come, the others say which wait was in vain, at which step."""
    two, three, crashed, killed, late = launch(
        "ranks_talk.py",
        Ranks(2, ["talk"]),
        Ranks(3, ["talk"]),
        *(Ranks(2, [how]) for how in ("raise", "kill", "hang")),
    )
    for ended in (two, three):
        assert all(each == Ended(0, f"again with 8\nagain with 4\nwell {rank}\n") for rank, each in enumerate(ended)), (
            ended
        )
    for (waiting, broken), code in ((crashed, 1), (killed, -9), (late, 3)):
        assert (waiting.code, broken.code) == (2, code), (waiting.output, broken.output)
        assert waiting.output.startswith("rank 0 of 2, step 7, the sampled groups: ")
    assert "lost another rank, which says above why it ended" in crashed[0].output
    assert "ZeroDivisionError: in a reward" in crashed[1].output
    assert "lost another rank" in killed[0].output and killed[1].output == ""
    assert "s for the other ranks and they did not come (ddp_timeout)" in late[0].output


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks.join(60, use_cpu=True)
    part = Part(0, torch.zeros(1), range(1), [torch.zeros(2)])
    assert ranks.count() == 1 and ranks.is_main() and ranks.share([1, 2]) == [1, 2]
    assert ranks.dealt([part]) == [part] and ranks.gather("x", "y") == ["x"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    ranks.sum_gradients([parameter])
    assert parameter.grad is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"rank 0 of 2 cannot reach the others .*unset WORLD_SIZE"):
        ranks.join(60, use_cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two' in the environment: it is no number"):
        ranks.join(60, use_cpu=True)
