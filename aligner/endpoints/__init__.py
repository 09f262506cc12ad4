"""One client for every language model that aligner asks: builders, judges and the proposer of `discover`.

    async with open_client(recipe.proposer, cache=folder / "replies.sqlite", run="discover") as client:
        reply = await client.chat(ChatRequest(messages=({"role": "user", "content": "..."},), purpose="propose"))

`client.py` says how the parts stand around each other; docs/endpoints.md is for users. Nothing heavy is imported here:
a recipe is checked without torch, transformers or `openai`.
"""

from aligner.endpoints.budget import Guard, Prices, Spent
from aligner.endpoints.cache import Cache, Store
from aligner.endpoints.client import Client, Defaults, check_endpoint, open_client
from aligner.endpoints.coalesce import Coalesce
from aligner.endpoints.local import LocalBackend
from aligner.endpoints.openai_backend import OpenAIBackend
from aligner.endpoints.pacing import RateLimit, Throttle
from aligner.endpoints.recording import RecordBackend, ReplayBackend
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, LLMError, request_key
from aligner.endpoints.scripted import ScriptedBackend, read_script
from aligner.endpoints.secrets import Secret, read_secret
from aligner.endpoints.usage import Usage

__all__ = [
    "Cache",
    "ChatRequest",
    "Client",
    "Coalesce",
    "Completion",
    "Defaults",
    "Guard",
    "LLMClient",
    "LLMError",
    "LocalBackend",
    "OpenAIBackend",
    "Prices",
    "RateLimit",
    "RecordBackend",
    "ReplayBackend",
    "ScriptedBackend",
    "Secret",
    "Spent",
    "Store",
    "Throttle",
    "Usage",
    "check_endpoint",
    "open_client",
    "read_script",
    "read_secret",
    "request_key",
]
