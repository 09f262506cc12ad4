"""Who is asked for what: the clients of a run, one for each model that the recipe names.

    async with open_roles(recipe, cache) as roles:
        reply = await roles.answerer.chat(ChatRequest(messages, purpose="answer"))

A role without a section of its own is played by `endpoint`. Sections that name the same model on
the same server are one client, with one limit and one account. All replies are kept in one file.
Nothing here knows what is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aligner.builders.evolve.recipe import EvolveRecipe
from aligner.config.recipe import Endpoint
from aligner.endpoints.batch import Batching
from aligner.endpoints.client import Client, open_client
from aligner.endpoints.request import LLMClient

REPLIES, BATCHES = "replies.sqlite", "batches"
"""The file of replies in a run directory, and the folder of what was sent in batches."""

PREVIEW = ".preview.sqlite"
"""End of the name of the file, beside the run directory to come, in which a preview keeps replies;
the run takes it over."""

BackendOf = Callable[[Endpoint], LLMClient | None]
"""What takes the place of a section's own backend, or None to leave it."""


@dataclass(frozen=True)
class Roles:
    """The clients. `evolver` writes instructions, `optimizer` analyses and rewrites methods,
    `answerer` answers, `judge` judges, `target` is the model whose pass rate is measured."""

    evolver: Client
    optimizer: Client
    answerer: Client
    judge: Client
    target: Client | None = None
    max_in_flight: int = 8
    """Requests under way at the same time, of all clients together."""
    batched: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Role -> how many of its requests are answered, and how many were submitted in batches."""

    def clients(self) -> dict[str, Client]:
        """Each client once, under the first role that it plays."""
        named: dict[str, Client | None] = {
            "evolver": self.evolver,
            "optimizer": self.optimizer,
            "answerer": self.answerer,
            "judge": self.judge,
            "target": self.target,
        }
        found: dict[str, Client] = {}
        for name, client in named.items():
            if client is not None and not any(client is other for other in found.values()):
                found[name] = client
        return found


def sections_of(recipe: EvolveRecipe) -> dict[str, Endpoint]:
    """Return each role with the section that plays it."""
    evolve = recipe.evolve
    sections = {
        "evolver": recipe.endpoint,
        "optimizer": evolve.optimizer or recipe.endpoint,
        "answerer": evolve.answerer or recipe.endpoint,
        "judge": evolve.judge or recipe.endpoint,
    }
    if evolve.checks.pass_rate is not None:
        sections["target"] = evolve.checks.pass_rate.target
    return sections


def server_of(section: Endpoint) -> tuple[str | None, ...]:
    """Return what tells models apart: two sections with the same are one client."""
    return (
        *(section.backend, section.base_url, section.model),
        *(section.script, section.replay, section.api_key_env),
    )


def models_of(recipe: EvolveRecipe) -> dict[str, str]:
    """Return the names of the models that rows are marked with."""
    sections = sections_of(recipe)
    return {
        "evol_model": name_of_model(sections["evolver"]),
        "answer_model": name_of_model(sections["answerer"]),
    }


def name_of_model(section: Endpoint) -> str:
    """Return the name of a section's model, as rows and reports show it."""
    return section.model or section.backend


@asynccontextmanager
async def open_roles(
    recipe: EvolveRecipe, cache: Path | None = None, backend_of: BackendOf | None = None
) -> AsyncIterator[Roles]:
    """Open the clients of a recipe, and close them at the end. `cache`: the file of replies; the
    accounts of each client are continued in it, and batches are remembered beside it.

    Raises: RecipeError, UsageError and DataError, as `open_client` does.
    """
    sections = sections_of(recipe)
    clients: dict[tuple[str | None, ...], Client] = {}
    batched: dict[str, tuple[int, int]] = {}
    async with AsyncExitStack() as stack:
        for role, section in sections.items():
            if (server := server_of(section)) in clients:
                continue
            backend = backend_of(section) if backend_of is not None else None
            client = open_client(
                section,
                cache=cache,
                run=f"evolve {role}",
                keep_truncated=True,
                batch=_batching(role, cache, batched) if recipe.evolve.batch else None,
                backend=backend,
            )
            clients[server] = await stack.enter_async_context(client)
        distinct = {server_of(section): section.max_in_flight for section in sections.values()}
        played = {role: clients[server_of(section)] for role, section in sections.items()}
        yield Roles(
            played["evolver"],
            played["optimizer"],
            played["answerer"],
            played["judge"],
            played.get("target"),
            max_in_flight=sum(distinct.values()),
            batched=batched,
        )


def _batching(
    role: str, cache: Path | None, batched: dict[str, tuple[int, int]]
) -> Batching | None:
    """How a client sends batches; without a place that remembers them, not at all."""
    if cache is None:
        return None

    def tell(done: int, submitted: int) -> None:
        batched[role] = done, submitted

    return Batching(cache.parent / BATCHES / role, on_progress=tell)
