"""A server as the engine sees it: which weights it has, and what it samples with them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, RLock

import torch
from torch import Tensor

from cohort.config.engines import VLLMEngineConfig
from cohort.rollouts.engine import EngineError
from cohort.rollouts.sampling import Sampling
from cohort.rollouts.vllm.server import Refused, Sampled, Server, Unanswered
from cohort.rollouts.vllm.weights import Comparison, Weights

OURS = "cohort-"
"""How the names of weights begin that runs send."""


@contextmanager
def refusals_told(server: Server) -> Iterator[None]:
    """Around requests that must succeed: a refusal is an EngineError."""
    try:
        yield
    except Refused as error:
        hint = ". Where it asks for a key, set VLLM_API_KEY" if error.status in (401, 403) else ""
        raise EngineError(f"engine: vllm: {server.url} refuses a request ({error.status}): {error}{hint}") from None


@contextmanager
def silence_told(server: Server) -> Iterator[None]:
    """Around requests that are not made again: one without an answer is an EngineError."""
    try:
        yield
    except Unanswered as error:
        raise EngineError(f"engine: vllm: {server.url} does not answer: {error}") from None


class Member:
    """One of the engine's servers. Raises Unanswered where a request is to be made again."""

    def __init__(self, url: str, config: VLLMEngineConfig):
        self.server, self.config = Server(url), config
        self.comparison = Comparison(url, config.max_logp_difference)
        self.served = ""
        """The name of the model that the server began with, as requests give it."""
        self.compared = ""
        """The name of the weights that were compared last."""
        self.adapters: list[tuple[str, weakref.ref[Weights]]] = []
        """Those that it was sent and has not been told to give up."""
        self.lock = RLock()

    def prepare(self, weights: Weights, sequences: list[Tensor], over: Event) -> None:
        """Wait until the server is there, send it the weights where it does not have them, as after a restart, and
        compare its scores of the sequences with the policy's; nothing where that is over. Raises EngineError where
        they do not arrive."""
        self.server.wait(self.config.start_timeout, over)
        with self.lock, refusals_told(self.server):
            if over.is_set():  # the server may have other weights by now
                return
            self.served, *adapters = self.server.models()
            has = weights.name in adapters if weights.is_adapter else self.server.weights() == weights.name
            if not has:
                self._send(weights)
                self.compared = ""
            if self.compared != weights.name:
                model = self._model(weights)
                scores = [torch.tensor(self.server.score(model, ids.tolist())) for ids in sequences]
                self.comparison.compare(weights.scores, torch.cat(scores))
                self.compared = weights.name

    def _model(self, weights: Weights) -> str:
        return weights.name if weights.is_adapter else self.served

    def _send(self, weights: Weights) -> None:
        server, folder, timeout = self.server, weights.folder, self.config.timeout
        try:
            if not weights.is_adapter:
                server.load_weights(weights.name, folder, timeout)
                return
            self.unload(unused=True)
            server.load_adapter(weights.name, folder, timeout)
            self.adapters.append((weights.name, weakref.ref(weights)))
        except (Refused, Unanswered) as error:
            if isinstance(error, Unanswered) and not error.failed:
                raise
            raise EngineError(
                f"engine: vllm: {server.url} cannot load the weights in {folder}: {error}. The folder must be on a "
                "disk that it sees under the same path (the key `folder`); after a failed update, restart the server"
            ) from None

    def unload(self, *, unused: bool) -> None:
        """Let the server give up the adapters that it was sent: all, or those that nobody uses any more."""
        with self.lock:
            for name, used in self.adapters:
                if not unused or used() is None:
                    self.server.unload_adapter(name)
            self.adapters = [(name, used) for name, used in self.adapters if unused and used() is not None]

    def sample(
        self, weights: Weights, prompt: list[int], n: int, sampling: Sampling, most: int, seed: int
    ) -> list[Sampled]:
        """`n` completions of a prompt, of `most` tokens at most, by these weights."""
        server = self.server
        try:
            sampled = server.sample(self._model(weights), prompt, n, sampling, most, seed, self.config.timeout)
            if not weights.is_adapter and (name := server.weights()) != weights.name:
                if name.startswith(OURS) and not name.startswith(weights.run):
                    raise EngineError(f"engine: vllm: another run sends its weights to {server.url}: use other servers")
                raise Unanswered("it was restarted, and does not have the policy's weights")
            return sampled
        except Refused as error:
            if error.status == 404:  # the adapter's name
                raise Unanswered(f"it was restarted: {error}") from None
            raise EngineError(f"engine: vllm: {server.url} refuses a prompt of {len(prompt)} tokens: {error}") from None
