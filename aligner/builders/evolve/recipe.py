"""The recipe of `aligner evolve`, and what the builder says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aligner.config.named import Names
from aligner.config.recipe import Data, Endpoint, Recipe, Section, Sources, Whole

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
    evolutions at fault."""
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


class EvolveRecipe(Recipe):
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
