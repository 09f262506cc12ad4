"""`aligner data rules`: draw rules from preference pairs, as the card of a scorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_content, say_json
from .models import AsJson, Column, Split, read_rows, source_section
from .output import Overwrite, checked_output, rows_fingerprint

if TYPE_CHECKING:
    from aligner.config.recipe import Endpoint
    from aligner.evaluation.pair_scores import Pair


def rules(
    data: Annotated[
        str, typer.Option("--data", help="Preference pairs: file, folder, glob or hub id.")
    ],
    judge: Annotated[
        str,
        typer.Option("--judge", metavar="CARD", help="Card with the endpoint that is asked."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the card here, a YAML file.")
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, help="Pairs that are read, drawn by --seed.")
    ] = 256,
    most: Annotated[int, typer.Option("--rules", min=1, max=60, help="Most rules.")] = 25,
    column: Column = None,
    split: Split = "train",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which pairs are read.")] = 0,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show the first question and the calls; ask nobody.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw rules from preference pairs, as the card of a scorer.

    A language model says why one answer of each pair is preferred, and which rules follow; equal
    ones are merged. The card scores answers by the share of rules that hold. Replies are kept: a
    command that is started again pays for what is missing alone.
    """
    from aligner.errors import UsageError
    from aligner.evaluation.pair_scores import as_pairs

    checked_output(output, data, resume=False, overwrite=overwrite, suffix=".yaml")
    if output is None and not preview:
        raise UsageError("--output is missing: where does the card go?", "add --output rules.yaml")
    endpoint = _endpoint_of(judge)
    source = source_section(data, column, split, pairs)
    found = as_pairs(read_rows(source, "preference", seed))
    if preview:
        _preview(found, as_json=as_json)
        return
    assert output is not None, "it is asked for above"
    record = _draw(judge, endpoint, found, most, data, output)
    if as_json:
        say_json(json.dumps(record, indent=2))
        return
    for rule in record["rules"]:
        say(f"- {rule}")
    say(f"{output}: {len(record['rules'])} rules; read them, then: --reward-model {output}")


def _endpoint_of(judge: str) -> Endpoint:
    from aligner.endpoints.client import check_endpoint
    from aligner.errors import RecipeError
    from aligner.reward_models.catalogue import read_spec

    card = read_spec(judge)
    if card.endpoint is None:
        raise RecipeError(
            f"{judge} is of the kind `{card.kind}`, and has no endpoint to ask",
            "name a card of the kind judge, rating, rules or rubric",
        )
    check_endpoint(card.endpoint)
    return card.endpoint


def _preview(pairs: list[Pair], *, as_json: bool) -> None:
    from aligner.endpoints.request import estimated_tokens
    from aligner.reward_models.rule_extraction import extracting, most_calls

    questions = [extracting(pair) for pair in pairs]
    tokens = sum(estimated_tokens(message["content"]) for one in questions for message in one)
    facts = {"pairs": len(pairs), "calls at most": most_calls(len(pairs)), "prompt tokens": tokens}
    if as_json:
        say_json(json.dumps({**facts, "first": list(questions[0])}, indent=2))
        return
    for message in questions[0]:
        say_content(f"[{message['role']}]\n{message['content']}\n")
    say(
        f"{facts['pairs']:,} pairs, about {tokens:,} tokens of prompts; at most "
        f"{facts['calls at most']:,} calls, reminders and merging included"
    )


def _draw(
    judge: str, endpoint: Endpoint, pairs: list[Pair], most: int, data: str, output: Path
) -> dict[str, Any]:
    from aligner.reward_models.rule_extraction import RuleFinder, card_of
    from aligner.runs.files import write_atomically

    from .render import Screen

    finder = RuleFinder(judge, endpoint)
    digest = rows_fingerprint(pairs)
    finder.account = f"rules:{output.expanduser().resolve()}:{digest[:16]}"
    with Screen() as screen:
        found = finder.find(pairs, most, screen.start)
    write_atomically(output, card_of(found, endpoint, data, digest))
    usage = finder.usage()
    finder.close()
    return {
        "output": str(output),
        "rules": found.rules,
        "pairs": found.pairs,
        "pairs without a usable reply": found.silent,
        "rules before merging": found.before_merging,
        "usage": usage,
    }
