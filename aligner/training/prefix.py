"""Whether the answers to a prompt share a row, decided once before training and said.

`preference.prefix` asks; the model's config, and the model itself on pairs of the training rows,
say what is possible. On a CPU these pairs are cut short, since the proof would take as long as a
step: enough tokens stay for answers to see each other, and windows are known from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from aligner.errors import RecipeError
from aligner.models.answers import Prefix, joined
from aligner.models.configs import read_config
from aligner.models.shared_prefix import (
    LEAST_SAVING,
    common_prefix,
    why_not_alike,
    why_not_shared,
)
from aligner.models.twin import FIRST_FREE_ID, NoTwin, random_twin

if TYPE_CHECKING:
    from datasets import Dataset

Group = Sequence[Sequence[int]]
"""Sequences of token ids that begin alike."""

PROOF_GROUPS = 2
PROOF_PROMPT, PROOF_ANSWER = 32, 16
"""Tokens of prompt and answers that a proof on a CPU reads."""

COUNTED_ROWS = 1000
"""Rows, spread evenly, from which the plan estimates what is saved."""


def settle_prefix(
    trainer: Any,
    recipe: Any,
    groups: Sequence[Group],
    *,
    sharded: bool,
    note: Callable[[str], None],
) -> Prefix:
    """Return how answers to one prompt are computed; where it is not as asked, tell `note` why.

    `trainer` holds the model, which is asked under the precision that it trains in; `recipe` has a
    section `preference`; `groups` are sequences of the first rows; `sharded`: this process holds a
    part of the model alone.

    Raises: RecipeError where `preference.prefix` is `shared` and the model cannot.
    """
    asked: Prefix = recipe.preference.prefix
    if asked == "separate":
        return asked
    rough = trainer.args.bf16 or trainer.args.fp16
    with trainer.compute_loss_context_manager():
        why = _why_not_by_twin(recipe) if sharded else why_not(trainer.model, groups, rough=rough)
    if not why:
        return asked
    if asked == "shared":
        raise _refusal(why)
    note(f"each answer is computed with a prompt of its own: {why}")
    return "separate"


def _refusal(why: str) -> RecipeError:
    return RecipeError(
        f"preference.prefix is shared, and the model does not allow it: {why}",
        "use auto or separate: the numbers are the same",
    )


def why_not(model: Any, groups: Sequence[Group], *, rough: bool = False) -> str:
    """Return why answers cannot share their prompt in this model, as a clause; or nothing."""
    differing = [group for group in groups if common_prefix(group) < min(map(len, group))]
    if model.device.type == "cpu":
        differing = [_cut(group) for group in differing]
    return why_not_alike(model, differing[:PROOF_GROUPS] or [_made_up()], rough=rough)


def _made_up() -> Group:
    """Two answers to a prompt, where rows have none that differ."""
    ids = [FIRST_FREE_ID + place % 7 for place in range(PROOF_PROMPT)]
    answers = ([FIRST_FREE_ID + 9] * 5, [FIRST_FREE_ID + 11] * 7)
    return [[*ids, *answer] for answer in answers]


def _cut(group: Group) -> Group:
    """A few tokens around the place where sequences part."""
    shared = common_prefix(group)
    return [list(ids[max(0, shared - PROOF_PROMPT) : shared + PROOF_ANSWER]) for ids in group]


def _why_not_by_twin(recipe: Any) -> str:
    """The same of a small random model with the same config."""
    try:
        twin = random_twin(recipe.model)
    except NoTwin as error:
        return f"no small model of its kind can be made, to try it with ({error})"
    return why_not(twin, [])


def first_groups(rows: Dataset) -> list[Group]:
    """Return the sequences of the first pairs, as many as a proof reads."""
    found: list[Group] = []
    for row in rows.select(range(min(PROOF_GROUPS, len(rows)))):
        found.append(_pair(row))
    return found


def _pair(row: dict[str, Any]) -> Group:
    return joined([(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected")])


def describe_prefix(recipe: Any, rows: Dataset) -> str:
    """Return, for the plan, whether the answers of these pairs will share their prompts, and what
    that saves; what only the loaded model shows is found out later.

    Raises: RecipeError where `preference.prefix` is `shared` and the config speaks against it.
    """
    asked = recipe.preference.prefix
    if asked == "separate":
        return "computed for each answer, as asked"
    attention = recipe.model.attn_implementation or "sdpa"
    if why := why_not_shared(read_config(recipe.model), attention):
        if asked == "shared":
            raise _refusal(why)
        return f"computed for each answer: {why}"
    saved = _tokens_saved(rows)
    if asked == "auto" and saved < LEAST_SAVING:
        return f"computed for each answer: sharing them would save only {saved:.0%} of the tokens"
    return f"shared by the answers of a pair: about {saved:.0%} fewer tokens"


def _tokens_saved(rows: Dataset) -> float:
    """The share of tokens that prefixes save, over a sample of the rows."""
    step = max(1, len(rows) // COUNTED_ROWS)
    separate = shared = 0
    for row in rows.select(range(0, len(rows), step)):
        group = _pair(row)
        tokens = sum(map(len, group))
        separate += tokens
        shared += tokens - common_prefix(group) * (len(group) - 1)
    return 1 - shared / separate if separate else 0.0
