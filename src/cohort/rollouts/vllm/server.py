"""One server of vLLM: its routes, what it is asked for, and what it answers."""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any
from urllib.parse import urlencode, urlsplit

from cohort.rollouts.engine import EngineError
from cohort.rollouts.sampling import Sampling

log = logging.getLogger("cohort")

QUICK = 30.0
"""Seconds for an answer that needs no sampling."""
TOLD = 2.0
"""Seconds after which it is said that a server is waited for."""
ANSWERS = 2**30
"""Most bytes of an answer that are read."""


class Unanswered(Exception):
    """A request without an answer, or with one that says to ask again. The message says why."""

    failed = False
    """Whether the server has answered that it failed."""


class Refused(Exception):
    """The server refuses a request. The message is its own."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Gone(EngineError):
    """There is no server, or it does not answer any more."""


@dataclass(frozen=True)
class Sampled:
    """A completion as the server tells it."""

    ids: list[int]
    logprobs: list[float]
    truncated: bool


class Server:
    """The requests that a run makes to one server. Several threads may use it."""

    def __init__(self, url: str):
        self.url, self._parts = url, urlsplit(url)
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = Lock()

    def call(self, method: str, path: str, body: Any = None, timeout: float = QUICK, **query: Any) -> Any:
        """The answer, read as JSON where it is JSON. Raises Unanswered or Refused."""
        secure, parts = self._parts.scheme == "https", self._parts
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=timeout)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        with self._lock:
            self._open.add(connection)
        try:
            where = parts.path + path + (f"?{urlencode(query)}" if query else "")
            connection.request(method, where, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read(ANSWERS)
        except TimeoutError:
            raise Unanswered(f"it has not answered for {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        answer = _read(content)
        if response.status >= 500:
            unanswered = Unanswered(_message(answer, content))
            unanswered.failed = True
            raise unanswered
        if response.status >= 300:
            raise Refused(response.status, _message(answer, content))
        return answer

    def abort(self) -> None:
        """Close what is open: the server stops sampling what nobody waits for."""
        with self._lock:
            sockets = [connection.sock for connection in self._open if connection.sock is not None]
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float, over: Event | None = None) -> None:
        """Until the server is there, or nobody waits any more. Raises Gone where it is not in these seconds."""
        began, told = time.monotonic(), False
        while over is None or not over.is_set():
            try:
                self.call("GET", "/health")
                return
            except Refused as error:
                raise EngineError(f"engine: vllm: {self.url} refuses /health: {error}") from None
            except Unanswered as error:
                waited = time.monotonic() - began
                if waited > seconds:
                    raise Gone(
                        f"engine: vllm: there is no server at {self.url}, for {seconds:g} s (start_timeout): {error}. "
                        "`cohort vllm MODEL` starts one"
                    ) from None
                if waited > TOLD and not told:
                    told = True
                    log.warning(
                        "engine: vllm: waiting for %s, for %g s at most (start_timeout): %s", self.url, seconds, error
                    )
            time.sleep(0.5)

    def settings(self) -> dict[str, Any]:
        """The server's own configuration. Raises EngineError where it does not tell."""
        try:
            answer = self.call("GET", "/server_info", config_format="json")
            settings: dict[str, Any] = answer["vllm_config"]
            settings["model_config"], settings["lora_config"]
        except (Refused, KeyError, TypeError) as error:
            raise EngineError(
                f"engine: vllm: {self.url} does not tell its settings at /server_info ({error}): it must be a recent "
                "vLLM (0.32 was tried), started by `vllm serve` with VLLM_SERVER_DEV_MODE=1. `cohort vllm MODEL` "
                "prints the whole command. (`trl vllm-serve` has other routes.)"
            ) from None
        return settings

    def sample(self, model: str, prompt: list[int], n: int, sampling: Sampling, most: int, seed: int,
               timeout: float) -> list[Sampled]:  # fmt: skip
        """`n` completions of a prompt, of `most` tokens at most. Raises Unanswered where it is to be asked again."""
        body = {
            "model": model, "prompt": prompt, "n": n, "seed": seed, "max_tokens": most,
            "temperature": sampling.temperature, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            # The tokens that end a completion are the run's own, and nothing else ends it.
            "stop_token_ids": sampling.eos_ids, "ignore_eos": True,
            "stop": sampling.stop, "include_stop_str_in_output": True, "skip_special_tokens": False,
            "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
        answer = self.call("POST", "/v1/completions", body, timeout)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            reasons = [choice["finish_reason"] for choice in choices]
            if again := set(reasons) - {"stop", "length"}:
                raise Unanswered(f"it ended a completion because of {again.pop()!r}")
            sampled = [
                Sampled(
                    [int(token) for token in choice["token_ids"]],
                    [float(value) for value in choice["logprobs"]["token_logprobs"]],
                    reason == "length",
                )
                for choice, reason in zip(choices, reasons, strict=True)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("/v1/completions", error) from None
        if len(sampled) != n or any(len(each.ids) != len(each.logprobs) or not each.ids for each in sampled):
            raise self._strange("/v1/completions", f"{len(sampled)} completions where {n} were asked for")
        return sampled

    def score(self, model: str, ids: list[int]) -> list[float]:
        """The log-probability of each token after the first, at temperature 1."""
        body = {"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
        answer = self.call("POST", "/v1/completions", body)
        try:
            tokens = answer["choices"][0]["prompt_logprobs"][1:]
            return [float(of[str(token)]["logprob"]) for of, token in zip(tokens, ids[1:], strict=True)]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._strange("/v1/completions", error) from None

    def models(self) -> list[str]:
        """The names that requests may have as their model: the served model's first, then those of adapters."""
        answer = self.call("GET", "/v1/models")
        try:
            first, *others = [str(each["id"]) for each in answer["data"]]
            return [first, *others]
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange("/v1/models", error) from None

    def load_adapter(self, name: str, folder: Path, timeout: float) -> None:
        """Take an adapter, which requests name as their model."""
        try:
            self.call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, timeout)
        except Refused as error:
            if "already been loaded" not in str(error):
                raise

    def unload_adapter(self, name: str) -> None:
        """Give up an adapter, where the server has it."""
        with suppress(Refused, Unanswered):
            self.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    def load_weights(self, name: str, folder: Path, timeout: float) -> None:
        """Take the weights of a folder in place of its own, under a name. What it was sampling is aborted, and what it
        remembers of the weights before is dropped. Raises EngineError where it keeps the latter."""
        self.call("POST", "/pause", mode="abort")
        try:
            arguments = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self.call("POST", "/collective_rpc", arguments, timeout)
            for wait in (0.1, 0.5, 2.0, 5.0):
                if self._told("POST", "/reset_prefix_cache", "success", reset_running_requests="true"):
                    break
                time.sleep(wait)
            else:
                raise EngineError(
                    f"engine: vllm: {self.url} does not drop its prefix cache (/reset_prefix_cache), which is of the "
                    "weights before: it would sample prompts with both. Restart it, or start it with "
                    "--no-enable-prefix-caching"
                )
            self.call("POST", "/update_weight_version", {"new_version": name})
        finally:
            self.call("POST", "/resume")

    def weights(self) -> str:
        """The name of the weights that it has; `default` of a server that has just started."""
        return str(self._told("GET", "/weight_info", "weight_version"))

    def _told(self, method: str, path: str, name: str, **query: Any) -> Any:
        """One value of an answer."""
        answer = self.call(method, path, **query)
        try:
            return answer[name]
        except (KeyError, TypeError) as error:
            raise self._strange(path, error) from None

    def _strange(self, path: str, why: object) -> EngineError:
        return EngineError(f"engine: vllm: {self.url}{path} gave an answer that is none of vLLM's ({why})")


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _message(answer: Any, content: bytes) -> str:
    try:
        return str(answer["error"]["message"])
    except (KeyError, TypeError):
        return content[:300].decode(errors="replace") or "no reason given"
