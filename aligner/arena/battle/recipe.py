"""The recipe of `aligner arena battle`: who answers, who judges, and who meets whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aligner.config.battles import KINDS, Contestant, Judge, Rating, contestant_problems
from aligner.config.generation_rules import engine_has_its_parts
from aligner.config.method import Method, OwnRows
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.recipe import BuilderRecipe, Data, Generation, Section, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView

Plan = Literal["round_robin", "target", "adaptive", "bracket"]


class Adaptive(Section):
    """`plan: adaptive`: a pair meets until its interval separates the two."""

    prompts_per_look: Whole = Field(20, ge=1)
    """Prompts that each open pair plays between two looks at its interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    """Of the interval of a pair's win rate; the looks share what may go wrong."""


class Arena(Section):
    """Battles (arXiv 2407.10627): each prompt is answered by two contestants, and judged in both
    orders."""

    contestants: Annotated[list[Contestant], Field(min_length=2)]
    """Who answers."""
    judges: Annotated[list[Judge], Field(min_length=1)]
    """Who judges; several are a panel, in which each has a vote."""
    plan: Plan = "round_robin"
    """Who meets whom: all pairs; `target` against each other one; `adaptive`: all pairs, each until
    its interval separates the two; `bracket`: the loser of a match is out."""
    target: str | None = None
    """The contestant that `plan: target` and `--fail-below` are about."""
    adaptive: Adaptive = Adaptive()
    """`plan: adaptive`."""
    category: str | None = None
    """Column of the prompts that ratings are reported by."""
    system: str | None = None
    """System prompt of answers to prompts that have none of their own; no judge sees it."""
    temperature: float = Field(0.0, ge=0.0, le=100.0)
    """Sampling temperature of answers."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus sampling of answers."""
    max_new_tokens: Whole = Field(1024, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Answers that a model here decodes together."""
    rating: Rating = Rating()
    """How battles become ratings."""


class ArenaRecipe(BuilderRecipe):
    """`aligner arena battle`: contestants answer prompts, and judges compare the answers."""

    method: Literal["arena"] = "arena"
    """What to do."""
    data: Data | None = None
    """Prompts. Absent: those of the first contestant that is a file."""
    generation: Generation = Generation()
    """What writes the answers of models that are loaded here."""
    arena: Arena
    """What belongs to this method alone."""


OF_ANSWERS = ("system", "temperature", "top_p", "max_new_tokens", "batch_size")


def _contestants_of(view: RecipeView) -> list[dict[str, Any]]:
    return [one for one in view["arena.contestants"] or [] if isinstance(one, dict)]


def _contestants(view: RecipeView) -> RecipeProblems:
    """Each has a name of its own, and is one thing."""
    found = _contestants_of(view)
    yield from contestant_problems(found, "arena.contestants")
    for name, count in Counter(str(one.get("name")) for one in found).items():
        if count > 1:
            hint = "give each a name of its own"
            yield problem_at("arena.contestants", f"{count} are called {name!r}", hint)


def _named_contestants(view: RecipeView) -> RecipeProblems:
    """Target and anchor are contestants."""
    names = [str(one.get("name")) for one in _contestants_of(view)]
    for key in ("arena.target", "arena.rating.anchor"):
        if view[key] is not None and view[key] not in names:
            hint = f"contestants are {', '.join(names)}"
            yield problem_at(key, f"{view[key]!r} is no contestant", hint)
    if view["arena.plan"] == "target" and view["arena.target"] is None:
        yield problem_at("arena.target", "is missing, and `plan: target` needs it", "name it")


def _arena_dead_keys(view: RecipeView) -> RecipeProblems:
    if view.given("arena.adaptive") and view["arena.plan"] != "adaptive":
        message = f"has no effect with `plan: {view['arena.plan']}`"
        yield problem_at("arena.adaptive", message, "it belongs to `plan: adaptive`")
    if view["arena.plan"] == "adaptive" and view["arena.rating.merge"] == "votes":
        message = "`votes` has no verdict for a whole battle, which `plan: adaptive` looks at"
        yield problem_at("arena.rating.merge", message, "use mean")
    found = _contestants_of(view)
    is_here = any(one.get("model") is not None for one in found)
    if not is_here and not any(one.get("endpoint") is not None for one in found):
        for key in (key for key in OF_ANSWERS if view.given(f"arena.{key}")):
            message = "has no effect: all contestants have their answers in files"
            yield problem_at(f"arena.{key}", message, "drop it")
    if not is_here and view.given("generation"):
        yield problem_at("generation", "has no effect: no contestant is loaded here", "drop it")
    if view["generation.engine"] == "endpoint":
        hint = "give the contestant an `endpoint` in place of a `model`"
        yield problem_at("generation.engine", "`endpoint` is no engine of an arena", hint)


def _arena_data(view: RecipeView) -> RecipeProblems:
    if view["data"] is None:
        if not any(one.get("answers") is not None for one in _contestants_of(view)):
            hint = "give `data.train` (`--data`): prompts"
            yield problem_at("data", "is missing, and no contestant is a file with prompts", hint)
        if view["arena.category"] is not None:
            yield problem_at("arena.category", "needs `data.train`", "name the prompts, or drop it")
        return
    if view["data.eval"] is not None:
        yield problem_at("data.eval", "has no effect on battles", "drop it")


def names_of_contestants(arena: Arena) -> Iterator[tuple[str, str]]:
    """Yield each contestant's name and what it is."""
    for one in arena.contestants:
        kind = next(kind for kind in KINDS if getattr(one, kind) is not None)
        source = {
            "model": one.model and one.model.name_or_path,
            "endpoint": one.endpoint and (one.endpoint.model or one.endpoint.backend),
            "answers": one.answers,
        }
        yield one.name, str(source[kind])


def _summary(recipe: ArenaRecipe) -> OwnRows:
    arena = recipe.arena
    prompts = recipe.data.in_short() if recipe.data is not None else "those of the answers"
    judges = [
        one.name or one.scorer or (one.endpoint and (one.endpoint.model or one.endpoint.backend))
        for one in arena.judges
    ]
    return [
        ("method", f"arena ({arena.plan})", "arena.plan"),
        ("prompts", prompts, ""),
        *(("contestant", f"{name}: {source}", "") for name, source in names_of_contestants(arena)),
        ("judged by", ", ".join(map(str, judges)), ""),
    ]


def _paths(run_dir: Path) -> dict[str, object]:
    rate = f"aligner arena diagnose {run_dir / 'games.jsonl'}"
    board, report = run_dir / "leaderboard.html", run_dir / "report.html"
    return {"leaderboard": board, "report": report, "the judges": rate}


METHOD = Method(
    recipe=ArenaRecipe,
    help=(
        "Battles (arXiv 2407.10627): contestants answer the same prompts, judges compare their "
        "answers in both orders, and Bradley-Terry makes ratings of it, with intervals by prompt. "
        "A contestant is a model, an endpoint or a file of answers; a judge is a language model or "
        "any scorer. Common flags: --data, --output, --seed."
    ),
    examples=(
        "aligner arena battle tiny/arena",
        "aligner arena battle --contestant old=old.jsonl --contestant new=runs/dpo/final --judge "
        "runs/reward/card.yaml --data prompts.jsonl",
        "aligner arena battle recipe.yaml --estimate",
        "aligner arena battle recipe.yaml --resume",
        "aligner arena battle recipe.yaml arena.target=new --fail-below 0.5",
        "aligner arena battle status runs/arena",
    ),
    rules=(
        *(_contestants, _named_contestants, _arena_dead_keys, _arena_data),
        *(engine_has_its_parts, no_mosaics),
    ),
    run="aligner.arena.battle.build:run_arena",
    summary=_summary,
    continues="asks nobody again who was asked",
    untouched="nothing was answered and nothing was judged",
    paths=_paths,
    report="aligner.arena.battle.report:write_arena_report",
    status="aligner.arena.battle.status:status_of",
    estimate="aligner.arena.battle.estimate:estimate_recipe",
    is_staged=True,
)
