"""The ranks of a run: processes with a copy of the model each, started by torchrun or accelerate launch.

The batch is replicated and the work is divided: every rank knows every group, and samples, rewards, scores and
differentiates its share. So credit, denominators, metrics and monitors are those of one process. Gradients are summed
before they are clipped. In a run of one process nothing here communicates.
"""

from __future__ import annotations

import datetime
import io
import logging
import pickle
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cohort.policy.memory import is_out_of_memory, retry_smaller
from cohort.policy.packed.pack import Part, micro_batches
from cohort.types import UserError
from cohort.world import local_rank, rank, world_size

log = logging.getLogger("cohort")

BUCKET = 2**23
"""Numbers that are summed over ranks in one message: 32 MiB of float32."""

CONNECTION = ("gloo/transport", "Connection closed", "Connection reset", "NCCL", "imed out", "imeout")
"""Parts of what torch.distributed's errors say of a connection."""

SENT_AS_ARRAYS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)

T = TypeVar("T")
Key = TypeVar("Key")
Value = TypeVar("Value")


class LostRank(UserError):
    """Another rank ended or does not answer. The command line prints the message alone: the reason is what that rank
    has printed."""


def join(timeout: float, use_cpu: bool) -> None:
    """Connect this process with the others that the launcher started; nothing where there is one, or where they are
    connected. `timeout`: seconds that a rank waits for the others. Raises UserError where that fails."""
    size = world_size()
    if size == 1 or dist.is_initialized():
        return
    on_gpu = torch.cuda.is_available() and not use_cpu
    if on_gpu:
        devices = torch.cuda.device_count()
        if local_rank() >= devices:
            raise UserError(
                f"rank {rank()} is process {local_rank()} of its machine, which has {devices} CUDA devices: start one "
                "process for each device (--nproc-per-node), or set CUDA_VISIBLE_DEVICES"
            )
        torch.cuda.set_device(local_rank())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=datetime.timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"rank {rank()} of {size} cannot reach the others ({error}): start all of them with torchrun or accelerate "
            "launch, with the same MASTER_ADDR and a MASTER_PORT that is free; unset WORLD_SIZE where nothing else was "
            "started"
        ) from None


def count() -> int:
    """Ranks of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is rank 0, which alone writes, logs and saves."""
    return number() == 0


class _Doing:
    """What the run is doing, for messages of a rank that waits in vain."""

    step = 0


def at_step(step: int) -> None:
    """Note the step for messages."""
    _Doing.step = step


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """The block waits for all ranks. Raises LostRank where one has ended, or does not come."""
    started = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _lost(error, what, f"waited {time.monotonic() - started:,.0f} s") from None


@contextmanager
def collective_passes(what: str) -> Iterator[None]:
    """Around passes of a model that is divided among ranks, which communicate. Raises LostRank for an error that says
    that another rank has ended, or does not come."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or not any(sign in str(error) for sign in CONNECTION):
            raise
        raise _lost(error, what, "waited") from None


def _lost(error: RuntimeError, what: str, waited: str) -> LostRank:
    where = f"rank {number()} of {count()}, step {_Doing.step}"
    if "imed out" in str(error) or "imeout" in str(error):
        why = f"{waited} for the other ranks and they did not come (ddp_timeout)"
    else:
        why = f"lost another rank, which says above why it ended ({str(error).splitlines()[0][:200]})"
    return LostRank(f"{where}, {what}: {why}")


def gather(value: T, what: str) -> list[T]:
    """The value of each rank, in order of rank."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _waiting(what):
        dist.all_gather_object(values, _packed(value))
    return [value if rank == number() else pickle.loads(packed) for rank, packed in enumerate(values)]


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    """Sends tensors as arrays, which takes a tenth of the time: a batch has several for each completion."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and obj.device.type == "cpu" and obj.dtype in SENT_AS_ARRAYS:
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def from_main(make: Callable[[], T], what: str) -> T:
    """What rank 0 makes; the others do not call the function."""
    if count() == 1:
        return make()
    box: list[Any] = [make() if is_main() else None]
    with _waiting(what):
        dist.broadcast_object_list(box, 0)
    made: T = box[0]
    return made


def any_of(flags: Sequence[bool], what: str) -> list[bool]:
    """For each flag, whether it holds on any rank."""
    if count() == 1:
        return list(flags)
    tensor = torch.tensor(flags, dtype=torch.int32)
    with _waiting(what):
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [bool(flag) for flag in tensor.tolist()]


def share(items: Sequence[T]) -> list[T]:
    """Every count()-th of the items, from number() on: this rank's."""
    return list(items[number() :: count()])


def merged(own: list[T], what: str) -> list[T]:
    """All ranks' results for their `share` of a sequence, in its order; this rank's are the same objects."""
    if count() == 1:
        return own
    every = gather(own, what)
    return [every[i % count()][i // count()] for i in range(sum(map(len, every)))]


def dealt(parts: Sequence[Part], whole: bool = False) -> list[Part]:
    """This rank's parts: all of them one after another are cut into pieces of about as many tokens, between completions
    or, with `whole`, between parts."""
    if count() == 1:
        return list(parts)
    lengths = [[part.tokens] if whole else [len(ids) for ids in part.completion_ids] for part in parts]
    total = max(sum(map(sum, lengths)), 1)
    own, before = [], 0.0
    for part, of_part in zip(parts, lengths, strict=True):
        rows = []
        for i, length in enumerate(of_part):
            if int((before + length / 2) / total * count()) == number():
                rows.append(i)
            before += length
        if rows and (whole or len(rows) == len(part.rows)):
            own.append(part)
        elif rows:
            ids = [part.completion_ids[i] for i in rows]
            own.append(Part(part.group, part.prompt_ids, [part.rows[i] for i in rows], ids))
    return own


def union(parts: Sequence[Part], compute: Callable[[list[Part]], Mapping[Key, Value]], what: str) -> dict[Key, Value]:
    """The function's results for all parts, each rank computing its own. Where memory runs out on one rank, all raise
    MemoryError."""
    if count() == 1:
        return dict(compute(list(parts)))
    return joined(together(lambda: compute(dealt(parts)), what), what)


def scored(
    parts: Sequence[Part],
    score: Callable[[Iterable[list[Part]]], Mapping[Key, Value]],
    token_budget: int,
    what: str,
) -> dict[Key, Value]:
    """The function's results for all parts, each rank computing its own in micro-batches of at most so many tokens.
    Where memory runs out on one rank, all go on with half as many."""

    def run(size: int) -> dict[Key, Value]:
        return union(parts, lambda own: score(micro_batches(own, size)), what)

    message = f"out of memory while {what}: going on with micro-batches of %d tokens"
    return retry_smaller(run, token_budget, lambda: 1, message)[0]


def concatenated(own: list[T], what: str) -> list[T]:
    """The lists of all ranks, one after another."""
    return [item for of_rank in gather(own, what) for item in of_rank]


def joined(own: Mapping[Key, Value], what: str) -> dict[Key, Value]:
    """The tables of all ranks as one."""
    return {key: value for of_rank in gather(own, what) for key, value in of_rank.items()}


def together(compute: Callable[[], T], what: str) -> T:
    """The function's result, once all ranks have theirs. Where memory runs out on one rank, all raise MemoryError, so
    that all try again."""
    if count() == 1:
        return compute()
    failed: BaseException | None = None
    try:
        result = compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        failed = error
    (any_failed,) = any_of([failed is not None], what)
    if failed is not None:
        raise failed
    if any_failed:
        raise MemoryError("memory ran out on another rank")
    return result


def retry_together(
    run: Callable[[int], T], size: int, smallest: Callable[[], int], message: str, what: str
) -> tuple[T, int]:
    """`memory.retry_smaller` where all ranks try again once memory runs out on one."""
    return retry_smaller(lambda size: together(lambda: run(size), what), size, smallest, message)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the parameters' gradients over the ranks, in float32; a gradient that a rank does not have is zero."""
    if count() == 1:
        return
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > BUCKET:
            _sum_bucket(bucket)
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.float().flatten() for gradient in gradients])
    with _waiting("summing gradients"):
        dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def make_equal(tensors: Iterable[Tensor]) -> None:
    """Give every rank rank 0's values."""
    if count() == 1:
        return
    with _waiting("sending the weights"):
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)


def require_agreement(facts: dict[str, Any]) -> None:
    """Raise UserError where a rank has other facts than rank 0, such as settings or data."""
    facts = {**facts, "torch": torch.__version__, "python": platform.python_version()}
    every = gather(facts, "comparing settings")
    for other, theirs in enumerate(every):
        for name, value in theirs.items():
            if value != every[0].get(name):
                raise UserError(
                    f"rank {other} has another {name} than rank 0: {value!r} instead of {every[0].get(name)!r}. All "
                    "ranks need the same files, settings and versions"
                )
