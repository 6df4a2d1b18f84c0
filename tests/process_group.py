"""Runs a function in a group of processes on this machine's CPU, under a time limit."""

from __future__ import annotations

import datetime
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WAIT = datetime.timedelta(seconds=30)
"""The longest that one rank waits for another."""


def in_ranks(count: int, work: Callable[..., Any], *arguments: Any, seconds: float = 300) -> list[Any]:
    """What `work(*arguments)` returns in each of `count` ranks of a gloo group. `work`: a function of a module of
    tests/, since a machine with a GPU starts processes anew. Raises AssertionError with a rank's traceback, and where
    the group takes longer than `seconds`."""
    context = mp.get_context("spawn" if torch.cuda.is_available() else "fork")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            context.Process(target=_rank, args=(rank, count, store, answers, work, arguments)) for rank in range(count)
        ]
        for process in processes:
            process.start()
        results: dict[int, Any] = {}
        limit = time.monotonic() + seconds
        try:
            while len(results) < count:
                if not answers.empty():
                    rank, error, result = answers.get()
                    assert not error, f"rank {rank} of {count}:\n{error}"
                    results[rank] = pickle.loads(result)
                    continue
                assert time.monotonic() < limit, f"ranks {set(range(count)) - set(results)} took over {seconds} s"
                dead = [i for i, p in enumerate(processes) if p.exitcode not in (None, 0) and i not in results]
                assert not dead or not answers.empty(), f"rank {dead[0]} of {count} died: {processes[dead[0]].exitcode}"
                time.sleep(0.02)
        finally:
            for process in processes:
                process.join(5 if len(results) == count else 0)
                if process.is_alive():
                    process.kill()
                    process.join()
        return [results[rank] for rank in range(count)]


def _rank(rank: int, count: int, store: str, answers: Any, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, count), rank=rank, world_size=count, timeout=WAIT)
        result = work(*arguments)
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, traceback.format_exc(), None))
        raise
    # As bytes: torch would share a tensor's memory with a process that ends.
    answers.put((rank, "", pickle.dumps(result)))
