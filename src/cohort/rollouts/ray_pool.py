"""The engine of several processes: workers of a Ray cluster, each with a copy of the policy."""

from __future__ import annotations

import io
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from cohort.config.engines import RayEngineConfig
from cohort.policy import ranks
from cohort.policy.model import Policy
from cohort.rollouts.engine import Engine, EngineError
from cohort.rollouts.ray_cluster import begin, reason, require_ray
from cohort.rollouts.ray_worker import Worker
from cohort.rollouts.sampling import Generation, OnGroup, OnTokens, Sampling
from cohort.types import Completion, UserError

log = logging.getLogger("cohort")

STARTING = 600.0
"""Seconds in which one worker at least must have started: loading PyTorch and a model over a network is slow."""
WATCHED = 1.0
"""Seconds after which time limits, and workers that have started, are looked at again."""


@dataclass(eq=False)
class Member:
    """A worker of the pool."""

    actor: Any
    started: Any
    """The answer to its first call; None once it has come."""
    busy: bool = False
    pid: int = 0


class RayPool:
    """Deals prompts to workers as they become free. A worker that ends, or does not answer in time, is replaced and
    its prompts are asked again: seeds belong to prompts, so that the completions are the same. Ray itself repeats
    nothing: what it repeats would run with the weights that the worker began with."""

    def __init__(self, policy: Policy, config: RayEngineConfig, max_rows: int):
        if ranks.count() > 1:
            raise UserError(
                f"engine: ray samples for one process that trains, and this run has {ranks.count()}: start it without "
                "torchrun, or use engine: local, with which each rank samples its share"
            )
        self.ray = require_ray()
        self.policy, self.config, self.max_rows = policy, config, max_rows
        self.members: list[Member] = []
        self.wanted = config.workers
        self.base: Any = None
        """A reference to the model as workers load it; None: the pool has not begun, or was released."""
        self.weights: _Weights | None = None
        self.serial = 0
        self.failures, self.lost = 0, 0
        self.lock = RLock()
        # Ray itself stays until the program ends: another pool may use it.
        weakref.finalize(self, _end, self.ray, self.members).atexit = False

    def check(self) -> None:
        self._start()
        deadline = time.monotonic() + STARTING
        while not any(member.started is None for member in self.members):
            self._keep_members()
            self._wait_for_start(deadline)

    def _start(self) -> None:
        with self.lock:
            if self.base is not None:
                return
            ray, config = self.ray, self.config
            model = io.BytesIO()
            torch.save(self.policy.model, model, pickle_module=ray.cloudpickle)
            if not ray.is_initialized():
                begin(ray, config, max(2**28, 4 * model.getbuffer().nbytes))
            same_device = self.policy.device.type == ("cuda" if config.gpus else "cpu")
            paths = self.policy.paths if same_device else None
            self.base = ray.put((model.getvalue(), self.policy.tokenizer, paths, self.policy.bf16, self.max_rows))
            log.info("engine: ray: %d workers, %g CPU cores and %g GPUs each", self.wanted, config.cpus, config.gpus)

    def resize(self, workers: int) -> None:
        """Change the number of workers. Those that leave end what they are sampling first."""
        if workers < 1:
            raise ValueError(f"a pool of {workers} workers cannot sample: give at least 1")
        self.wanted = workers

    def follow(self, policy: Policy, version: int) -> None:
        self._start()
        trained = {name: p.detach().cpu() for name, p in policy.model.named_parameters() if p.requires_grad}
        self.serial += 1
        self.weights = _Weights(self, self.ray.put(trained), self.serial, version)

    def present(self) -> Engine:
        if self.weights is None:
            self.follow(self.policy, self.policy.version)
        assert self.weights is not None
        return self.weights

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        return self.present().generate(prompts, n, sampling, seeds, on_tokens, on_group)

    def dealt(self, prompts: int, n: int) -> deque[list[int]]:
        """Two requests for each worker, so that a long completion holds up half of its prompts at most."""
        size = max(1, min(self.max_rows // n, -(-prompts // (2 * self.wanted))))
        return deque(list(range(prompts))[i : i + size] for i in range(0, prompts, size))

    def answers(
        self, ask: Callable[[Any, list[int]], Any], waiting: deque[list[int]]
    ) -> Iterator[tuple[list[int], tuple[int, list[list[Completion]]]]]:
        """The answers to requests, each for the prompts at some places, as they come."""
        ray, starting = self.ray, time.monotonic() + STARTING
        asked: dict[Any, tuple[Member, list[int], float]] = {}
        try:
            while waiting or asked:
                self._keep_members()
                while waiting and (member := self._free_member()) is not None:
                    places = waiting.popleft()
                    limit = time.monotonic() + self.config.timeout
                    asked[ask(member.actor, places)] = member, places, limit
                if not asked:
                    self._wait_for_start(starting)
                    continue
                starting = time.monotonic() + STARTING
                ready, _ = ray.wait(list(asked), num_returns=1, timeout=WATCHED)
                for ref in ready:
                    member, places, _ = asked.pop(ref)
                    answer = self._answer(ref, member)
                    if answer is None:
                        waiting.appendleft(places)
                    else:
                        self.failures = 0
                        yield places, answer
                for ref, (member, places, limit) in list(asked.items()):
                    if time.monotonic() > limit:
                        del asked[ref]
                        self._lose(member, f"it has not answered for {self.config.timeout:g} s (timeout)")
                        waiting.appendleft(places)
        finally:
            for member, *_ in asked.values():  # an error, or Ctrl-C: nobody waits for what they sample
                self._remove(member)

    def _answer(self, ref: Any, member: Member) -> Any:
        """A worker's answer; None where the worker is lost. Raises what its sampling raised."""
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            member.busy = False
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except self.ray.exceptions.RayError as error:
            self._lose(member, reason(error))
            return None
        member.busy = False
        return answer

    def _lose(self, member: Member, why: str) -> None:
        if not self._remove(member):
            return  # the pool was released
        self.lost, self.failures = self.lost + 1, self.failures + 1
        if self.failures >= self.config.max_failures:
            raise EngineError(
                f"engine: ray: {self.failures} workers in a row ended without an answer (max_failures), the last one "
                f"because: {why}. The logs on its machine say more: /tmp/ray/session_latest/logs"
            )
        log.warning("engine: ray: a worker ended; another takes its place and its prompts: %s", why)

    def _remove(self, member: Member) -> bool:
        """End a worker. Returns whether it was one of the pool's."""
        with self.lock:
            if member not in self.members:
                return False
            self.members.remove(member)
            self.ray.kill(member.actor)
            return True

    def _free_member(self) -> Member | None:
        """A worker that has nothing to do, which is now taken."""
        with self.lock:
            for member in self.members:
                if member.started is None and not member.busy:
                    member.busy = True
                    return member
        return None

    def _keep_members(self) -> None:
        """Take in the workers that have started, and bring their number to the one that is wanted."""
        with self.lock:
            if self.base is None:
                raise EngineError("engine: ray: the pool was released while it sampled")
            starting = [member for member in self.members if member.started is not None]
            if starting:
                refs = [member.started for member in starting]
                ready, _ = self.ray.wait(refs, num_returns=len(refs), timeout=0)
                for member in starting:
                    if member.started in ready and (pid := self._answer(member.started, member)) is not None:
                        member.started, member.pid = None, pid
            for member in [m for m in self.members if not m.busy][: max(0, len(self.members) - self.wanted)]:
                self._remove(member)
            for _ in range(self.wanted - len(self.members)):
                config = self.config
                # On this machine cores are shared: another trainer of the program may still hold its workers.
                cpus = 0 if config.address is None else config.cpus
                options = {"num_cpus": cpus, "num_gpus": config.gpus, "max_restarts": 0, "max_task_retries": 0}
                actor = self.ray.remote(**options)(Worker).remote(self.base, config.cpus, config.gpus)
                self.members.append(Member(actor, actor.started.remote()))

    def _wait_for_start(self, deadline: float) -> None:
        """Until a worker has started or is free, or a second has passed. Raises EngineError at the deadline."""
        with self.lock:
            refs = [member.started for member in self.members if member.started is not None]
            working = len(refs) < len(self.members)
        if working:
            time.sleep(0.01)  # another call has them all
        elif time.monotonic() > deadline:
            config, has = self.config, self.ray.cluster_resources()
            raise EngineError(
                f"engine: ray: no worker has started within {STARTING:g} s: each needs {config.cpus:g} CPU cores and "
                f"{config.gpus:g} GPUs, and the cluster has {has.get('CPU', 0):g} and {has.get('GPU', 0):g} in all"
            )
        elif refs:
            self.ray.wait(refs, num_returns=1, timeout=WATCHED)

    def release(self) -> None:
        with self.lock:
            for member in list(self.members):
                self._remove(member)
            self.base = self.weights = None
            self.failures = 0


def _end(ray: Any, members: list[Member]) -> None:
    if ray.is_initialized():
        for member in members:
            ray.kill(member.actor)


class _Weights:
    """The pool with the weights that it was given at one moment. Several threads may use it."""

    def __init__(self, pool: RayPool, ref: Any, serial: int, version: int):
        self.pool, self.ref, self.serial, self.version = pool, ref, serial, version

    def generate(
        self,
        prompts: list[Tensor],
        n: int,
        sampling: Sampling,
        seeds: Sequence[int],
        on_tokens: OnTokens | None = None,
        on_group: OnGroup | None = None,
        keep_tokens: int = 0,
    ) -> Generation:
        def ask(actor: Any, places: list[int]) -> Any:
            # In a list, a reference is passed as it is; a worker that has the weights need not read them.
            chosen = [prompts[i] for i in places], n, sampling, [seeds[i] for i in places]
            return actor.generate.remote([self.ref], self.serial, self.version, *chosen)

        groups: list[list[Completion] | None] = [None] * len(prompts)
        for places, (serial, answer) in self.pool.answers(ask, self.pool.dealt(len(prompts), n)):
            if serial != self.serial:
                raise EngineError(f"engine: ray: a worker sampled with weights {serial} instead of {self.serial}")
            for place, group in zip(places, answer, strict=True):
                assert groups[place] is None, f"prompt {place} was answered twice"
                groups[place] = group
                if on_group is not None:
                    on_group(place, group)
        return Generation([group for group in groups if group is not None])

    def follow(self, policy: Policy, version: int) -> None:
        """It keeps its weights."""

    def check(self) -> None:
        self.pool.check()
