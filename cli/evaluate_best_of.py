"""`aligner eval --reward-model CARD` on rows with lists of right and wrong answers: the best of
several, and RewardBench 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .console import say
from .evaluate_rewards import _figure, _value, opened
from .output import Output

if TYPE_CHECKING:
    from aligner.config.recipe import Source
    from aligner.evaluation.best_of import Choice
    from aligner.evaluation.figures import Figures
    from aligner.evaluation.rewardbench2 import Item
    from aligner.reward_models.card import Card
    from aligner.runs.partial_output import PartialOutput

    from .render import Screen

Record = dict[str, Any]

FIRST_REMARKS = 5

NAMES = {
    "tied_accuracy": "Ties, all right answers first (tied)",
    "ref_accuracy": "Ties, the right answer first (ref)",
    "preferred": "Ties, gap above spread",
    "preferred_hard": "Ties, both gaps above spread",
    "margin": "Ties, margin (tanh)",
}


def evaluate_best_of(
    specs: Sequence[str],
    source: Source,
    *,
    category: str | None,
    drops_bad: bool,
    resamples: int,
    seed: int,
    output: Output,
    trust_remote_code: bool,
) -> Record:
    """Score the answers of a source with one reward model or two, and measure. The record goes into
    `output`."""
    import hashlib

    from aligner.errors import UsageError
    from aligner.evaluation.best_of import credits_of, lines_of, read_choices
    from aligner.evaluation.contamination import trained_on
    from aligner.events import Warned
    from aligner.reward_models.catalogue import read_spec
    from aligner.reward_models.isolation import announce_walls
    from aligner.runs.files import dumps

    from .render import Screen

    if len(specs) > 2:
        raise UsageError(
            f"--reward-model is given {len(specs)} times", "name one, or two to compare"
        )
    cards = {spec: read_spec(spec, trust_remote_code=trust_remote_code) for spec in specs}
    choices = read_choices(source, category or "subset", drops_bad=drops_bad, seed=seed)
    if choices.dropped:
        are = "row is" if choices.dropped == 1 else "rows are"
        say(f"warning: {choices.dropped:,} broken {are} left out", err=True)
    data = hashlib.sha256("\n".join(lines_of(choices.rows)).encode()).hexdigest()
    read = {file.sha256 for file in choices.files}
    seen = {spec: trained_on(card, read) for spec, card in cards.items()}
    draws = {"resamples": resamples, "seed": seed}

    def header() -> Record:
        return {"the data": data, "the reward models": list(specs)}

    with Screen() as screen, output.resumable(), output.parts(header) as part:
        for spec, files in seen.items():
            if files:
                text = f"{spec} was trained on {' and '.join(files)}"
                screen.on_event(Warned(f"{text}: what follows is no held-out result"))
        isolation = announce_walls(list(cards.values()), screen.on_event)
        results, scored = [], []
        for number, spec in enumerate(specs):
            name = f"scored-{number}"
            found, items = _measured(
                spec, cards[spec], choices.rows, screen, part, name, data, draws
            )
            results.append({**found, "trained_on": seen[spec]})
            scored.append(credits_of(items, choices.rows))
        record = {
            "reward_models": list(specs),
            "data": source.path,
            "rows_dropped": choices.dropped,
            "category_column": category or "subset",
            "bootstrap": {**draws, "interval": 0.95},
            "results": results,
            "compared": _compared(scored, draws),
            **({"isolation": isolation} if isolation else {}),
        }
        part.finish([dumps(record, indent=2) + "\n"])
    return record


def _compared(scored: Sequence[Figures | None], draws: dict[str, int]) -> Record | None:
    """The comparison of two models; None for one, and where all rows are of Ties."""
    from aligner.evaluation.comparing import compare

    known = [one for one in scored if one is not None]
    return compare(known[0], known[1], **draws) if len(known) == 2 else None


def _measured(
    spec: str,
    card: Card,
    rows: Sequence[Choice],
    screen: Screen,
    part: PartialOutput,
    name: str,
    data: str,
    draws: dict[str, int],
) -> tuple[Record, list[Item]]:
    """The numbers of one reward model, which is gone from memory before the next is loaded, and
    its scores."""
    from aligner.evaluation.best_of import measure, score_choices

    scorer, journal, at_once = opened(spec, card, screen, part, name, data)
    counter = screen.counter(f"judging with {spec}")
    items, remarks = score_choices(
        scorer, rows, at_once=at_once, journal=journal, on_progress=counter
    )
    first = [{"row": origin, "said": said} for origin, said in remarks[:FIRST_REMARKS]]
    record = {
        "reward_model": spec,
        "fingerprint": scorer.fingerprint(),
        **measure(items, rows, **draws),
        "remarks": {"count": len(remarks), "first": first},
    }
    return record, items


def show(record: Record) -> None:
    """Everything as tables on stdout."""
    from .render import columns

    for result in record["results"]:
        say(f"{result['reward_model']}  ({result['kind'].replace('_', ' ')})", bold=True)
        say(f"{result['items']:,} prompts, {result['answers']:,} answers")
        say()
        rows = []
        if result["rewardbench2"] is not None:
            rows.append(_figure("RewardBench 2", result["rewardbench2"], f"{result['items']:,}"))
        if result["accuracy"] is not None:
            without = sum(row["items"] for row in result["subsets"] if row["name"] != "Ties")
            rows.append(_figure("best answer is right", result["accuracy"], f"{without:,}"))
            rows.append(("by chance", _value(result["chance"]), "", ""))
        for row in result["subsets"]:
            if row["name"]:
                rows.append(_figure(row["name"], row["score"], f"{row['items']:,}"))
        for name, words in NAMES.items() if result["ties"] else ():
            rows.append(_figure(words, result["ties"][name], ""))
        columns(("", "value", "95% interval", "prompts"), rows)
        for text in result["left_out"]:
            say()
            say(f"Left out. {text}")
        if result["remarks"]["count"]:
            say()
            say(f"{result['remarks']['count']:,} remarks of the scorer, the first:")
            for one in result["remarks"]["first"]:
                say(f"  {one['row']}: {one['said']}")
        say()
    if record["compared"] is not None:
        from .evaluate_model import show_comparison

        first, second = record["reward_models"]
        show_comparison({"model": second, "figures": record["compared"], "notes": []}, first)
