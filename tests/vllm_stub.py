"""A server with vLLM's routes over the local engine, and with faults that real servers have had."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import torch
from peft import PeftModel
from safetensors.torch import load_file

from cohort.policy.model import Policy
from cohort.policy.packed.pack import Part
from cohort.rollouts.engine import LocalEngine
from cohort.rollouts.sampling import Sampling

NAME = "base"


class Stub:
    """Serves a copy of a policy. `faults`: "deaf" says that it took weights and keeps its own; "head" keeps the output
    layer; "cache" does not drop its prefix cache; "scale" samples with other weights by a factor."""

    def __init__(self, policy: Policy, faults: set[str] | None = None, **settings: Any):
        self.start = policy
        self.faults = faults or set()
        self.settings = {
            "logprobs_mode": "processed_logprobs",
            "lora": {"max_lora_rank": 64},
            "untied": True,
        } | settings
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.aborts = 0
        """Requests that are still to be aborted."""
        self.delay = 0.0
        self.lock = threading.Lock()
        self.port = 0
        self.begin()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin(self) -> None:
        """Start, on the port that it had: with the weights that it is served with."""
        self.policy = Policy(_plain(self.start), self.start.tokenizer)
        self.adapters: dict[str, Policy] = {}
        self.version, self.paused = "default", False
        self.server = _Server(("127.0.0.1", self.port), self)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """End at once: requests get no answer."""
        self.server.ended = True
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append((path, {**query, **body}))
        if path == "/server_info":
            model = {
                "logprobs_mode": self.settings["logprobs_mode"],
                "hf_overrides": {"tie_word_embeddings": False} if self.settings["untied"] else {},
            }
            return 200, {"vllm_config": {"model_config": model, "lora_config": self.settings["lora"]}}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in (NAME, *self.adapters)]}
        if path == "/v1/completions":
            return self.completions(body)
        if path == "/v1/load_lora_adapter":
            return self.load_adapter(body["lora_name"], Path(body["lora_path"]))
        if path == "/v1/unload_lora_adapter":
            return (200, "") if self.adapters.pop(body["lora_name"], None) else _error(404, "cannot be found")
        if path == "/collective_rpc":
            return self.reload(Path(body["kwargs"]["weights_path"]))
        if path == "/update_weight_version":
            self.version = body["new_version"]
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        known = ("/health", "/pause", "/resume", "/update_weight_version", "/sleep", "/wake_up")
        others = {
            "/reset_prefix_cache": {"success": "cache" not in self.faults},
            "/weight_info": {"weight_version": self.version},
        }
        return (200, others.get(path, {})) if path in (*known, *others) else _error(404, "Not Found")

    def load_adapter(self, name: str, folder: Path) -> tuple[int, Any]:
        if not (folder / "adapter_config.json").is_file():
            return _error(404, f"Loading lora {name} failed: No adapter found for {folder}")
        adapted = PeftModel.from_pretrained(_plain(self.start), str(folder)).base_model.model
        self.adapters[name] = self.policy if "deaf" in self.faults else Policy(adapted, self.start.tokenizer)
        return 200, ""

    def reload(self, folder: Path) -> tuple[int, Any]:
        if not folder.is_dir():
            return _error(500, "Call to collective_rpc method failed")
        weights = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        own = self.policy.model.state_dict()
        with self.lock, torch.no_grad():
            for name, tensor in weights.items():
                if "deaf" not in self.faults and not ("head" in self.faults and name.startswith("lm_head")):
                    own[name].copy_(tensor)
        return 200, {"results": [None]}

    def completions(self, body: dict[str, Any]) -> tuple[int, Any]:
        policy = self.policy if body["model"] == NAME else self.adapters.get(body["model"])
        if policy is None:
            return _error(404, f"The model `{body['model']}` does not exist.")
        while self.paused:
            time.sleep(0.01)
        prompt = torch.tensor(body["prompt"])
        if body.get("prompt_logprobs") is not None:
            with self.lock:
                scored = policy.logprobs(iter([[Part(0, prompt[:1], range(1), [prompt[1:]])]]), 1.0)[0, 0]
            scored = scored + ("scale" in self.faults)
            tokens = [{str(t): {"logprob": x}} for t, x in zip(body["prompt"][1:], scored.tolist(), strict=True)]
            return 200, {"choices": [{"prompt_logprobs": [None, *tokens]}]}
        time.sleep(self.delay)
        sampling = Sampling(
            body["temperature"], max_tokens=body["max_tokens"], eos_ids=body["stop_token_ids"], stop=body["stop"]
        )
        with self.lock:
            (group,) = LocalEngine(policy).generate([prompt], body["n"], sampling, [body["seed"]]).completions
            aborted, self.aborts = self.aborts > 0, max(0, self.aborts - 1)
        choices = [
            {
                "index": i,
                "token_ids": c.ids.tolist(),
                "logprobs": {"token_logprobs": c.logprobs.tolist()},
                "finish_reason": "abort" if aborted else "length" if c.truncated else "stop",
            }
            for i, c in enumerate(group)
        ]
        return 200, {"choices": choices[::-1]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], stub: Stub):
        self.stub, self.ended = stub, False
        super().__init__(address, _Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no error of the test's."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Nothing to print."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        parts = urlsplit(self.path)
        status, answer = self.server.stub.answer(parts.path, dict(parse_qsl(parts.query)), body)
        if self.server.ended:
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "code": status}}


def _plain(policy: Policy) -> Any:
    """A copy of the model without its adapter."""
    if policy.peft is None:
        return copy.deepcopy(policy.model)
    return copy.deepcopy(policy.peft).unload()


@contextmanager
def stub_of(policy: Policy, faults: set[str] | None = None, **settings: Any) -> Iterator[Stub]:
    stub = Stub(policy, faults, **settings)
    try:
        yield stub
    finally:
        stub.stop()
