"""What is seen of one request while it is sent, and sent again; the HTTP client and the backend
share it through a context variable, since `openai` stands between them."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass
class Attempts:
    """How often a request was sent, the last object read, and what was wrong with the last reply.
    `outcome`: what came of a first attempt (a response or an error of httpx2) that `openai` does
    not know yet."""

    sent: int = 0
    body: Mapping[str, Any] | None = None
    problem: str = ""
    outcome: Any = None

    def count(self) -> None:
        """Note that the request is sent."""
        self.sent += 1
        self.problem = ""


ATTEMPTS: ContextVar[Attempts] = ContextVar("aligner_attempts")
