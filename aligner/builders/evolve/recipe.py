"""The recipe of `aligner evolve`, and what the builder says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aligner.config.endpoint_rules import endpoint_is_whole
from aligner.config.method import Method, OwnRows
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.named import Names
from aligner.config.recipe import BuilderRecipe, Data, Endpoint, Section, Sources, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Temperature = Annotated[float, Field(ge=0.0, le=100.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class Optimization(Section):
    """How the evolving method is optimized before the rows are evolved (arXiv 2406.00770, section
    3)."""

    preset: Literal["robust", "paper", "released"] = "robust"
    """Which candidate replaces the method. `robust`: the one with the lowest failure rate, where it
    is lower than that of the method in force; `paper`: the best candidate in any case, until the
    rate no longer falls; `released`: the rule of the authors' code, which also looks at lengths."""
    steps: int = Field(10, ge=0, le=1000)
    """Most optimization steps; 0 uses the method as it starts."""
    batch_size: int = Field(10, ge=1, le=1000)
    """Instructions whose evolution a step looks at."""
    development_size: int = Field(50, ge=1, le=100_000)
    """Instructions that candidates are compared on, the same in every step, none of them looked at
    by a step."""
    seeds: Whole = Field(2000, ge=2)
    """Instructions of `data.train` that both are drawn from, at random."""
    candidates: int = Field(5, ge=1, le=100)
    """Analyses and rewritten methods of a step, of which the best is taken."""
    trajectory_rounds: int = Field(1, ge=1, le=10)
    """How often an instruction is evolved before it is looked at."""
    patience: int = Field(3, ge=1, le=1000)
    """`robust`: steps without a better method before stopping."""
    secondary: Literal["none", "issue_rate"] = "none"
    """`issue_rate`: between methods of the same failure rate, the one of which a judge finds fewer
    evolutions at fault; belongs to `robust`."""
    start: Literal["full", "weak"] = "full"
    """The method that is optimized: four steps, or the bare request (the paper's ablation)."""
    contract: Literal["owned", "free"] = "owned"
    """`owned`: only the steps are rewritten, and what the reply must look like stays; `free`: the
    whole method is, as in the paper."""
    temperature: Temperature = 0.6
    """Sampling temperature of analyses and rewritten methods. At 0 all candidates are one."""
    top_p: TopP = 0.95
    """Nucleus sampling of the same."""
    max_tokens: Tokens = 2048
    """Longest analysis or method."""


class Failures(Section):
    """When an evolution counts as failed: by rules on the answer that it gets (arXiv 2406.00770,
    appendix A)."""

    rules: Literal["robust", "paper", "released"] = "robust"
    """`paper`: those of its appendix; `released`: those of the authors' code; `robust`: the
    paper's, after normalization, and evolutions that are empty, unchanged, cut off, refused or hold
    the prompt."""
    phrases: list[str] = []
    """Further beginnings of answers that mean failure where the answer ends with a question mark;
    for other languages, for example."""
    on_fail: Literal["retry", "keep_seed", "drop"] = "retry"
    """`retry`: once more at temperature 0.7, then drop; `keep_seed`: the instruction as it was,
    with a new answer."""


class PassRate(Section):
    """Keep the rows that teach a given model: those it answers correctly sometimes."""

    target: Endpoint
    """The model that is to be trained."""
    samples: int = Field(4, ge=1, le=1000)
    """Its answers to each prompt, at temperature 1."""
    low: Share = 0.0
    """Rows with this pass rate or less are dropped."""
    high: Share = 1.0
    """Rows with this pass rate or more are dropped."""


class Checks(Section):
    """What is looked at in finished rows. Each drops what it finds, and counts it."""

    failures: bool = True
    """Rows whose answer asks back, in one of the ways of `evolve.failures`."""
    refusals: bool = True
    """Answers that refuse."""
    truncated: bool = True
    """Answers that ended at the longest length."""
    duplicates: bool = True
    """Prompts that are the same as a seed's or as an earlier row's, letter case and punctuation
    aside."""
    near_duplicates: float | None = Field(0.8, ge=0.4, le=1.0)
    """Prompts whose Jaccard similarity (of word 3-grams) to a seed or an earlier row is at least
    this; null looks for none."""
    test_sets: Sources | None = None
    """Test sets that no row may overlap with: sources like those of `data.train`."""
    ngram: int = Field(13, ge=2, le=100)
    """An overlap: so many words in a row that are the same, in a prompt or an answer; of a shorter
    test, all. 8 is counted beside it."""
    drop_overlaps: bool = True
    """Whether rows that overlap are dropped, or only counted."""
    verifier: Annotated[str | None, Names("scorer")] = None
    """A verifier that answers must pass, with a score of 1 at least: `verifier:json`, or
    `verifier:FILE.py:FUNCTION`, a function of yours. One that compares gets the `answer` of the
    seed."""
    majority: int = Field(1, ge=1, le=1000)
    """Answers to each prompt, all but the first at temperature 1: kept is one with the final result
    that most of them have; rows without such a result are dropped."""
    pass_rate: PassRate | None = None
    """Keep only rows that a given model solves sometimes; needs `verifier`, or `majority`."""


class SkillMix(Section):
    """Instruct-SkillMix (arXiv 2408.14774): skills are listed first, then each row asks for a few
    of them together. Uses no seeds."""

    topics: int = Field(20, ge=1, le=10_000)
    """Topics that the skills are listed for."""
    skills_per_topic: int = Field(10, ge=1, le=1000)
    """Skills of each topic."""
    query_types: int = Field(10, ge=1, le=1000)
    """Kinds of query, one of which each row is of."""
    k: int = Field(2, ge=1, le=10)
    """Skills of a row; the paper has 2."""


class Magpie(Section):
    """Magpie (arXiv 2406.08464): an aligned model continues its own chat template where a user's
    turn begins, and so writes the instruction itself. Uses no seeds."""

    tokenizer: Annotated[str | None, Names("tokenizer")] = None
    """Hub id or folder of the model's tokenizer, whose chat template is continued. Absent: that of
    a `local` endpoint."""
    system: str | None = None
    """System prompt above the instruction, which steers what it is about."""
    temperature: Temperature = 1.0
    """Sampling temperature of instructions."""
    top_p: TopP = 1.0
    """Nucleus sampling of instructions."""
    max_tokens: Tokens = 256
    """Longest instruction; one that is cut is dropped."""


class Evolve(Section):
    """Auto Evol-Instruct (arXiv 2406.00770)."""

    mode: Literal["auto", "classic", "skillmix", "magpie"] = "auto"
    """`auto`: the evolving method is optimized, then every row of `data.train` is evolved by it;
    `classic`: fixed operations drawn at random (Evol-Instruct, arXiv 2304.12244); `skillmix` and
    `magpie` write `rows` instructions from nothing."""
    rows: Whole | None = Field(None, ge=1)
    """`skillmix`, `magpie`: how many rows. Else: at most so many seeds."""
    rounds: int = Field(1, ge=1, le=10)
    """How often a row is evolved, each time from the one before; all rounds' rows are kept."""
    multiturn: Literal["first_turn", "sequential"] = "first_turn"
    """Conversations: their first user turn alone, or every user turn, each after the evolved and
    newly answered ones before it."""
    method: Annotated[str | None, Names("file")] = None
    """`auto`: a method optimized earlier, `method.json` of a run, in place of optimizing."""
    optimization: Optimization = Optimization()
    """How the method is optimized."""
    failures: Failures = Failures()
    """When an evolution has failed."""
    checks: Checks = Checks()
    """What finished rows must pass."""
    skillmix: SkillMix = SkillMix()
    """`mode: skillmix`."""
    magpie: Magpie = Magpie()
    """`mode: magpie`."""
    optimizer: Endpoint | None = None
    """The model that analyses and rewrites methods. Absent: `endpoint`."""
    answerer: Endpoint | None = None
    """The model that answers. Absent: `endpoint`."""
    judge: Endpoint | None = None
    """The model that judges evolutions, for `secondary`. Absent: `endpoint`."""
    temperature: Temperature = 0.0
    """Sampling temperature of evolved instructions."""
    max_tokens: Tokens = 1500
    """Longest reply that evolves an instruction."""
    answer_system: str | None = None
    """System prompt of answers, while a method is optimized and of the rows that are written; the
    rows do not hold it."""
    answer_temperature: Temperature = 0.0
    """Sampling temperature of answers."""
    answer_max_tokens: Tokens = 2048
    """Longest answer."""
    structured: Literal["auto", "never"] = "auto"
    """`auto`: replies as JSON by a schema, where the server takes `response_format`; else, and with
    `never`, sections under headings."""
    rows_in_flight: int | None = Field(None, ge=1, le=100_000)
    """Rows under way at the same time. Absent: as many as keep all endpoints busy."""
    batch: bool = False
    """Send requests as files to the servers' batch API, at half the price and within a day."""


class EvolveRecipe(BuilderRecipe):
    """`aligner evolve`: write instructions and their answers."""

    method: Literal["evolve"] = "evolve"
    """What to do."""
    data: Data | None = None
    """Where the seeds come from: prompts, or rows with a prompt, whose answers are not used. Absent
    with `mode: skillmix` and `magpie`."""
    endpoint: Endpoint
    """The language model that evolves; and that answers, analyses and judges where no other is
    given. Sampling is said in `evolve`."""
    evolve: Evolve = Evolve()
    """What belongs to this method alone."""


ROLES = ("endpoint", "evolve.optimizer", "evolve.answerer", "evolve.judge")
TARGET = "evolve.checks.pass_rate.target"
SAMPLING = ("temperature", "top_p", "max_tokens")

OF_MODES = {
    "auto": ("method", "optimization", "optimizer", "judge"),
    "skillmix": ("skillmix",),
    "magpie": ("magpie",),
}
"""Mode -> keys of `evolve` that no other mode reads."""

FROM_NOTHING = ("skillmix", "magpie")
NEEDS_SEEDS = ("rounds", "multiturn")
OF_DATA = ("eval", "max_length", "on_too_long", "control_tokens")
"""Keys of `data` that say nothing of seeds."""


def _seeds(view: RecipeView) -> RecipeProblems:
    mode = view["evolve.mode"]
    if mode in FROM_NOTHING:
        if view["data"] is not None:
            message = f"has no effect with `mode: {mode}`, which uses no seeds"
            yield problem_at("data", message, "drop it")
        if view["evolve.rows"] is None:
            hint = "say how many instructions are to be written"
            yield problem_at("evolve.rows", f"is missing, and `mode: {mode}` needs it", hint)
        for key in NEEDS_SEEDS:
            if view.given(f"evolve.{key}"):
                message = f"has no effect with `mode: {mode}`, which evolves nothing"
                yield problem_at(f"evolve.{key}", message, "drop it")
        if view["evolve.failures.on_fail"] == "keep_seed":
            message = f"is `keep_seed`, and `mode: {mode}` has no seeds"
            yield problem_at("evolve.failures.on_fail", message, "use retry or drop")
    elif view["data"] is None:
        hint = "give `data.train` (`--data`): prompts, or rows with a prompt"
        yield problem_at("data", "is missing: there is nothing to evolve", hint)
    else:
        for key in OF_DATA:
            if view.given(f"data.{key}"):
                message = "has no effect on seeds, which are neither split nor tokenized"
                yield problem_at(f"data.{key}", message, "set it where the rows are trained on")


def _keys_of_modes(view: RecipeView) -> RecipeProblems:
    mode, hint = view["evolve.mode"], "drop it"
    for owner, keys in OF_MODES.items():
        for key in keys if mode != owner else ():
            if view.given(f"evolve.{key}"):
                message = f"has no effect with `mode: {mode}`"
                yield problem_at(f"evolve.{key}", message, f"it belongs to `mode: {owner}`")
    if mode != "auto":
        return
    if view["evolve.method"] is not None:
        for key in ("optimization", "optimizer", "judge"):
            if view.given(f"evolve.{key}"):
                message = "has no effect with `evolve.method`, which was optimized before"
                yield problem_at(f"evolve.{key}", message, hint)
        return
    if view.given("evolve.judge") and view["evolve.optimization.secondary"] == "none":
        message = "has no effect without `evolve.optimization.secondary`"
        yield problem_at("evolve.judge", message, "set secondary: issue_rate, or drop it")
    preset = view["evolve.optimization.preset"]
    for key in ("patience", "secondary") if preset != "robust" else ():
        if view.given(f"evolve.optimization.{key}"):
            message = f"has no effect with `preset: {preset}`"
            yield problem_at(f"evolve.optimization.{key}", message, "it belongs to `robust`")


def _magpie(view: RecipeView) -> RecipeProblems:
    if view["evolve.mode"] != "magpie":
        return
    if view["evolve.magpie.tokenizer"] is None and view["endpoint.backend"] != "local":
        message = "is missing: the model's chat template is continued, and a server tells none"
        hint = "name the hub id or folder of that model's tokenizer"
        yield problem_at("evolve.magpie.tokenizer", message, hint)
    for key in ("temperature", "max_tokens", "structured"):
        if view.given(f"evolve.{key}"):
            message = "has no effect with `mode: magpie`, which asks for no instruction"
            yield problem_at(f"evolve.{key}", message, "see `evolve.magpie`")


def _sections(view: RecipeView) -> list[str]:
    """The keys of all sections that name a model."""
    keys = [key for key in ROLES if key == "endpoint" or view[key] is not None]
    if view["evolve.checks.pass_rate"] is not None:
        keys.append(TARGET)
    return keys


def _endpoints(view: RecipeView) -> RecipeProblems:
    seen: dict[tuple[Any, ...], str] = {}
    for key in _sections(view):
        yield from endpoint_is_whole(view, key)
        if view["evolve.batch"] and view[f"{key}.backend"] != "openai":
            message = f"`{view[f'{key}.backend']}` has no batch API, and `evolve.batch` is true"
            yield problem_at(f"{key}.backend", message, "name a server that has one, or drop it")
        for name in SAMPLING:
            if view.given(f"{key}.{name}"):
                message = "has no effect: sampling is said by what is asked for"
                hint = "set `evolve.temperature`, `evolve.answer_temperature` and their like"
                yield problem_at(f"{key}.{name}", message, hint)
        server = tuple(
            view[f"{key}.{name}"] for name in ("backend", "base_url", "model", "script", "replay")
        )
        first = seen.setdefault(server, key)
        if first != key and any(
            view[f"{key}.{name}"] != view[f"{first}.{name}"] for name in Endpoint.model_fields
        ):
            message = f"names the same model on the same server as `{first}`, with other settings"
            yield problem_at(key, message, f"it is one client with one limit: say it in `{first}`")


def _checks(view: RecipeView) -> RecipeProblems:
    for key in ("ngram", "drop_overlaps"):
        if view.given(f"evolve.checks.{key}") and view["evolve.checks.test_sets"] is None:
            message = "has no effect without `evolve.checks.test_sets`"
            yield problem_at(f"evolve.checks.{key}", message, "name a test set, or drop it")
    if view["evolve.checks.pass_rate"] is None:
        return
    if view["evolve.checks.verifier"] is None and view["evolve.checks.majority"] < 3:
        message = "needs something that says which answers are right"
        hint = "set evolve.checks.verifier, or evolve.checks.majority to 3 or more"
        yield problem_at("evolve.checks.pass_rate", message, hint)
    low, high = view["evolve.checks.pass_rate.low"], view["evolve.checks.pass_rate.high"]
    if low >= high:
        message = f"is {low:g}, and `high` is {high:g}: no row would be kept"
        yield problem_at("evolve.checks.pass_rate.low", message, "make it the smaller one")


def _summary(recipe: EvolveRecipe) -> OwnRows:
    evolve = recipe.evolve
    names = {"evolves": recipe.endpoint, "answers": evolve.answerer, "optimizes": evolve.optimizer}
    said = [
        f"{section.model or section.backend} {what}"
        for what, section in names.items()
        if section is not None
    ]
    source = recipe.data.in_short() if recipe.data is not None else f"{evolve.rows:,} from nothing"
    return [
        ("method", f"evolve ({evolve.mode})", ""),
        ("data", source, ""),
        ("models", ", ".join(said), ""),
    ]


def _paths(run_dir: Path) -> dict[str, object]:
    rows = run_dir / "data" / "train.jsonl"
    train = f"aligner sft RECIPE data.train={rows}"
    return {"rows": rows, "report": run_dir / "report.html", "train": train}


METHOD = Method(
    recipe=EvolveRecipe,
    help=(
        "Auto Evol-Instruct (arXiv 2406.00770): a method of making instructions harder is "
        "optimized first, then every row of the data is evolved by it, answered and checked. "
        "evolve.mode gives classic Evol-Instruct, Instruct-SkillMix or Magpie in its place. Common "
        "flags: --data, --output, --seed."
    ),
    examples=(
        "aligner evolve tiny/evolve",
        "aligner evolve evolve/local-server --data seeds.jsonl endpoint.model=NAME --estimate",
        "aligner evolve recipe.yaml --preview 3",
        "aligner evolve recipe.yaml endpoint.budget.usd=5",
        "aligner evolve recipe.yaml --resume",
        "aligner evolve status runs/evolve",
    ),
    rules=(_seeds, _keys_of_modes, _magpie, _endpoints, _checks, no_mosaics),
    run="aligner.builders.evolve.build:run_evolve",
    summary=_summary,
    untouched="nothing was asked",
    paths=_paths,
    report="aligner.builders.evolve.report:write_evolve_report",
    status="aligner.builders.evolve.status:status_of",
    estimate="aligner.builders.evolve.estimate:estimate_recipe",
    preview="aligner.builders.evolve.preview:preview_rows",
    is_staged=True,
)
