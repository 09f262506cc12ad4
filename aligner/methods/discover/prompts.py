"""The conversation with the language model that proposes objectives, as in DiscoPOP (arXiv
2406.08414, section 3).

There is no population: the archive that the search began with, then every proposal with what came
of it, failures included, is what the model sees. Differences from the authors' code: replies that
cannot be read are fed back instead of ending the run; a refusal says the line and the reason; the
fitness comes with its standard error and with facts about the shape of the objective; and only the
latest proposals stay, with the best of the older ones, so that a long search does not outgrow the
context.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aligner.methods.discover.archive import Record, shown

BEST_SHOWN = 5

MOST_CHARACTERS = 50_000
"""A longer reply is refused unread."""
ECHOED_CHARACTERS = 6_000
"""How much of its own earlier replies a model sees again."""
NAME_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a reply says."""

    thought: str
    name: str
    code: str


class ReplyError(ValueError):
    """A reply that holds no proposal; the text tells the model what to write."""


def read_reply(text: str) -> Proposal:
    """Return the proposal in a reply, a JSON object with thought, name and code.

    A code fence around it and a <think> block before it are tolerated. The name becomes an
    identifier, and letters that no file or terminal should see are taken out.

    Raises: ReplyError.
    """
    if len(text) > MOST_CHARACTERS:
        raise ReplyError(
            f"the reply has {len(text):,} characters; write at most {MOST_CHARACTERS:,}"
        )
    try:
        # Code in JSON often holds real line breaks, which strict JSON forbids.
        values = json.loads(_unwrapped(text), strict=False)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ReplyError(
            f"the reply is not JSON ({why}); answer with one JSON object and nothing around it"
        ) from None
    if not isinstance(values, dict):
        raise ReplyError("the reply is JSON, but no object with the keys thought, name and code")
    for key in ("thought", "name", "code"):
        if not isinstance(values.get(key), str) or (key != "thought" and not values[key].strip()):
            raise ReplyError(f"the reply's `{key}` is missing, or is no text")
    # A name that can be a Python function's and a file's.
    name = re.sub(r"[^A-Za-z0-9_]+", "_", values["name"]).strip("_")[:NAME_CHARACTERS]
    name = name or "objective"
    if name[0].isdigit():
        name = f"objective_{name}"[:NAME_CHARACTERS]
    return Proposal(clean(values["thought"]), name, clean(values["code"]))


def _unwrapped(text: str) -> str:
    body = text.strip()
    if body.startswith("<think>"):
        body = body.partition("</think>")[2].strip()
    if body.startswith("```") and body.endswith("```") and "\n" in body:
        body = body[body.index("\n") : -3]
    return body


def clean(text: str) -> str:
    """Return a text without control characters, but for line breaks and tabs, and without halves of
    letters."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter for letter in whole if letter in "\n\t" or letter.isprintable())


def system_prompt(beta: float, language: str) -> str:
    """Return the instructions. `language`: what may stand in the code, in words."""
    return f"""You design objective functions for preference optimisation of language models. A \
policy is trained on pairs of answers to the same prompt: one was chosen, the other rejected. Your \
objective maps the log-probabilities of both answers under the policy and under a frozen reference \
(its state before training) to one loss for each pair. Known members of the family are DPO \
(logistic loss), SLiC (hinge) and IPO (square). Draw on what you know of losses for binary \
classification, robust statistics and label noise, and try ideas that differ from those before.

Answer with one JSON object and nothing else, its keys in this order:
  "thought": why this objective might do better, in a few sentences
  "name": a short snake_case name
  "code": the Python source of one function

The function has exactly this signature, returns one loss per pair as a tensor of shape (batch,), \
and must be differentiable in the policy's log-probabilities:

def name(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):

The four arguments are tensors of shape (batch,): log-probabilities summed over the answer's \
tokens, in nats. self.beta is {beta:g} and is the only attribute of self; further hyperparameters \
are constants in the body. torch and torch.nn.functional (as F) are at hand. {language}

I will train a policy with it and answer with its fitness, mean and standard error over seeds. Higher is better."""


def conversation(
    records: Sequence[Record], replies: Callable[[int], str], history: int, system: str
) -> tuple[list[dict[str, str]], list[int]]:
    """Return the messages for the next proposal, and the indices of the objectives that they show.

    `replies(index)` is the model's own earlier answer.
    """
    proposals = [record for record in records if record.origin == "proposal"]
    recent = proposals[-history:] if history else []
    older = proposals[: len(proposals) - len(recent)]
    start = [record for record in records if record.origin == "start"]
    kept = sorted(
        (record for record in older if record.valid), key=lambda record: -sum(record.fitness)
    )[:BEST_SHOWN]
    first = ["These objectives were measured so far:"]
    for record in (*start, *kept):
        result = f"fitness {shown(record.fitness)}" if record.valid else f"failed: {record.error}"
        first.append(f"{record.name}: {result}\n{record.source.rstrip()}")
    first.append(_NEXT)
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "\n\n".join(first)},
    ]
    for record in recent:
        messages.append({"role": "assistant", "content": replies(record.index)[:ECHOED_CHARACTERS]})
        messages.append({"role": "user", "content": f"{verdict(record)}\n\n{_NEXT}"})
    return messages, [record.index for record in (*start, *kept, *recent)]


_NEXT = "Propose the next objective."


def verdict(record: Record) -> str:
    """Return what the language model reads about a proposal: why it failed, or how good it is and
    how it is shaped."""
    if not record.valid:
        return f"This objective failed: {record.error}"
    facts = "".join(f"\n- {sentence}" for sentence in record.facts.get("text", []))
    return f"Fitness: {shown(record.fitness)} over {len(record.fitness)} seeds." + (
        f"\nIts shape:{facts}" if facts else ""
    )
