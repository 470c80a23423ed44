"""What a client is told when the answer is no: one shape for all of it, OpenAI's."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from worldline.errors import UserError

FIELDS = {  # what the command line calls it -> what the API does
    "PROMPT": "prompt",
    "--steps": "num_inference_steps",
    "--frames": "num_frames",
    "--forward": "seconds",
    "--image": "input_reference",
    "B": "second",
}
RETRY = {"retry-after": "5"}  # headers of a refusal that passes


class Refused(Exception):
    """An answer that is an error. `param`: the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None, code: str | None = "invalid_value") -> Refused:
    """A mistake in a request."""
    return Refused(400, message, param, code)


def from_user_error(error: UserError, param: str | None = None) -> Refused:
    """What the library says of a mistake, in the words of the API."""
    words = [FIELDS.get(word, word) for word in str(error).split(" ")]
    text = " ".join(re.sub(r"--([a-z][a-z0-9-]*)", lambda match: match[1].replace("-", "_"), word) for word in words)
    named = re.match(r"([a-z_][a-z0-9_]*)\b", text)
    if param is None and named is not None and str(error).startswith(("--", "PROMPT")):
        param = named[1]
    return bad(text, param)


def from_validation(error: ValidationError) -> Refused:
    """What is wrong with the first field that is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part)[:1].isupper() and "[" not in str(part))
    param = where or None
    match first["type"]:
        case "missing":
            return bad(f"{where} is missing", param, "missing_required_parameter")
        case "extra_forbidden":
            return bad(f"{where[:80]} is no parameter of this call", param and param[:80], "unknown_parameter")
        case kind:
            code = "invalid_type" if kind.endswith("_type") else "invalid_value"
            return bad(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}", param, code)
