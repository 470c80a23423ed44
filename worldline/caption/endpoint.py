"""Models behind an OpenAI-compatible address (vLLM, SGLang, hosted): chat completions with frames as pictures.

A request that fails for a reason that passes (429, 5xx, a lost connection, a timeout) is sent again after a growing
pause, or after the time that the server names. Tokens and requests are counted, so that a run says what it cost.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldline.caption.captioner import REQUESTS, Spoken, Ways, as_jpeg, spread
from worldline.errors import UserError

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 60.0  # seconds
MAX_REPLY = 16 << 20  # bytes


@dataclass
class Cost:
    """What an endpoint was asked for, over all threads."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, value in counts.items():
                setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, int]:
        names = ("requests", "retries", "prompt_tokens", "completion_tokens")
        return {name: getattr(self, name) for name in names}


class Endpoint:
    """`address` ends before `/chat/completions`, as in https://host/v1; the key is read from the environment."""

    def __init__(self, address: str, ways: Ways, pause: Callable[[float], None] = time.sleep) -> None:
        self.address = address.rstrip("/").removesuffix("/chat/completions")
        self.ways = ways
        self.cost = Cost()
        self.pause = pause
        self.model = ways.model or self._first_model()

    def chat(self, content: str | list[dict[str, Any]], **settings: Any) -> str:
        """The answer to one message. Raises UserError when the endpoint refuses it or stays away."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0.0, **settings}
        answer = self._ask("/chat/completions", body)
        usage = answer.get("usage") or {}
        self.cost.add(
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{self.address}: answered without a message; is it OpenAI-compatible?") from None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{self.address}: {self.model} said nothing")
        return " ".join(text.split())

    def _first_model(self) -> str:
        listed = self._ask("/models", None).get("data") or []
        if not listed:
            raise UserError(f"{self.address}: lists no model; name one with --captioner-model")
        return str(listed[0]["id"])

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get(self.ways.key_variable):
            request.add_header("Authorization", f"Bearer {key}")
        reason = ""
        for attempt in range(self.ways.retries + 1):
            self.cost.add(requests=1, retries=int(attempt > 0))
            wait = min(LONGEST_PAUSE, 2.0**attempt * random.uniform(0.5, 1.0))
            try:
                with urllib.request.urlopen(request, timeout=self.ways.timeout) as reply:
                    return dict(json.loads(reply.read(MAX_REPLY)))
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}"
                if error.code not in PASSING:
                    told = " ".join(error.read(300).decode("utf-8", "replace").split())
                    raise UserError(f"{self.address}: {reason}; {told}") from None
                wait = _told_wait(error.headers.get("Retry-After"), wait)
            except (OSError, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.ways.retries:
                self.pause(wait)
        raise UserError(f"{self.address}: no answer after {self.ways.retries + 1} attempts ({reason})")


def _told_wait(header: str | None, otherwise: float) -> float:
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or "")))
    except ValueError:
        return otherwise


class EndpointCaptioner:
    """Captions by an endpoint that sees pictures; several clips are asked about at once."""

    def __init__(self, endpoint: Endpoint, ways: Ways) -> None:
        self.endpoint, self.ways = endpoint, ways
        self.model, self.version, self.frames = endpoint.model, endpoint.address, ways.frames

    def prompt(self, style: str) -> str:
        return self.ways.prompt or REQUESTS[style]

    def describe(self, clips: Sequence[np.ndarray], style: str = "full") -> list[Spoken]:
        """A caption for each clip uint8 (T, H, W, 3), in order."""
        with ThreadPoolExecutor(max(1, self.ways.concurrency)) as pool:
            return list(pool.map(lambda clip: self._one(clip, style), clips))

    def _one(self, clip: np.ndarray, style: str) -> Spoken:
        content: list[dict[str, Any]] = [{"type": "text", "text": self.prompt(style)}]
        for frame in clip[spread(len(clip), self.frames)]:
            data = base64.b64encode(as_jpeg(frame, self.ways.side)).decode("ascii")
            content.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
        return Spoken(self.endpoint.chat(content, max_tokens=400))
