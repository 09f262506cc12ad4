"""Which turns of a row are trained, by `sft.loss_on` and by what the row itself says; nothing here
knows tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.data.rows import WEIGHT, CompletionRow, ConversationRow, Messages, as_turns
from aligner.errors import DataError, RecipeError

if TYPE_CHECKING:
    from aligner.config.recipe import LossOn


def turns_of(row: ConversationRow | CompletionRow) -> tuple[Messages, int]:
    """Return the whole conversation, and the number of messages that belong to the prompt."""
    if isinstance(row, ConversationRow):
        return row.messages, 0
    prompt = as_turns(row.prompt, "user")
    return [*prompt, *as_turns(row.completion, "assistant")], len(prompt)


def wanted_turns(
    messages: Messages, first: int, row: ConversationRow | CompletionRow, loss_on: LossOn
) -> list[int]:
    """Return the indices of the messages whose tokens are trained."""
    assistant = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not assistant and loss_on != "all":
        raise DataError(
            f"{row.origin}: there is no assistant turn to train on",
            "drop the row, or use sft.loss_on=all",
        )
    if loss_on == "completion" and isinstance(row, ConversationRow):
        raise RecipeError(
            f"sft.loss_on is 'completion', but {row.origin} is a conversation without a prompt of "
            "its own",
            "use sft.loss_on=assistant or last_assistant",
        )
    wanted = assistant
    if loss_on == "last_assistant":
        wanted = assistant[-1:]
    elif loss_on == "completion" or (loss_on == "auto" and isinstance(row, CompletionRow)):
        wanted = [i for i in assistant if i >= first]
    trained = [i for i in wanted if messages[i].get(WEIGHT) != 0]
    if wanted and not trained and loss_on != "all":
        which = "the answer has" if len(wanted) == 1 else "every answer has"
        raise DataError(
            f"{row.origin}: {which} weight 0, so nothing of this row would be trained",
            "drop the row",
        )
    return trained
