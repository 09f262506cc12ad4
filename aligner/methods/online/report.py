"""The report and the part of the model card of `aligner online`: rounds, curves by round, pairs,
and what held-out prompts are answered with. Written from the stages, at any time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aligner.data.rows import PromptRow, prompt_text
from aligner.methods.online.oracle_report import oracle_part
from aligner.methods.online.read_rounds import Round, RunOfRounds, read_rounds
from aligner.methods.online.status import how_far
from aligner.methods.online.words import MEASURED, WINS, measured_cells, name_of_round, wins_text
from aligner.reports.charts import Series, bar_chart, line_chart, number, point_chart
from aligner.reports.page import duration
from aligner.reports.pieces import in_cell, joined, remark, table
from aligner.reports.training import OwnParts, write_report

MOST_POINTS = 400
"""Responses of a round in the cloud of rewards and lengths."""
MOST_PAIRS = 3
"""Pairs of a round that are shown."""

CURVES = (
    ("Reward", "reward", None),
    ("Gold", "gold", None),
    ("KL to the start, nats a response", "kl", None),
    ("Tokens of a response", "tokens", None),
    ("Responses that end by themselves", "finished", (0.0, 1.0)),
    ("Different word pairs among all (distinct-2)", "distinct_2", (0.0, 1.0)),
    ("Pairs that the reward orders as gold does", "proxy_accuracy", (0.0, 1.0)),
)
"""Title, key of what a round measured, and ends of the axis."""

TRAINED = (
    ("accuracy", "rewards/accuracies", "{:.0%}"),
    ("margin of log-ratios", "rewards/margins", "{:.3g}"),
    ("log-ratio, chosen", "rewards/chosen", "{:.3g}"),
    ("log-ratio, rejected", "rewards/rejected", "{:.3g}"),
)
"""Column, key of what the last log line of a round's training said, and how it is written."""


def write_online_report(run_dir: Path, manifest: dict[str, Any] | None = None) -> Path:
    """Write `report.html`."""
    run = read_rounds(Path(run_dir))
    sections = [
        ("rounds", "Rounds", _rounds(run)),
        ("curves", "Curves by round", _curves(run)),
        ("oracle", "Oracle", oracle_part(run)),
        ("pairs", "Pairs", _pairs(run)),
        ("lengths", "Reward against length", _lengths(run)),
        ("samples", "Held-out prompts, round by round", _samples(run)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in sections if body]
    facts = [("rounds", f"{len(run.measured[1:])} of {run.online['rounds']}")]
    reached = f"after {len(run.measured[1:])} of {run.online['rounds']} rounds"
    return write_report(run_dir, manifest, OwnParts(shown, _tiles(run), facts, reached))


def _tiles(run: RunOfRounds) -> list[dict[str, str]]:
    """Best round, what it is worth, and how far it went."""
    if not run.measured:
        return []
    start, best = run.measured[0].measured, run.measured[run.best].measured
    tiles = []
    if run.best:
        tiles.append(_tile("best round", str(run.best), f"by {run.judge}, on validation prompts"))
    part = "test" if best["test"] else "validation"
    for name, key, _ in MEASURED[:2]:
        if best[part].get(key) is not None:
            before = f"{part} prompts, start {number(start[part][key])}"
            tiles.append(_tile(name, number(best[part][key]), before))
    if run.best:
        tiles.append(_tile("KL to the start", number(best[part]["kl"]), f"nats, {part} prompts"))
        wins = best["wins"].get("start")
        if wins is not None:
            between = f"{wins['low']:.0%} to {wins['high']:.0%}, {part} prompts"
            tiles.append(_tile("wins against the start", f"{wins['value']:.0%}", between))
    return tiles


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


# --- rounds ---------------------------------------------------------------------------------------


def _rounds(run: RunOfRounds) -> Markup:
    names = [column for column, _, _ in MEASURED]
    head = ["round", "part", *names, "distinct-2", WINS, "against the one before", "time", ""]
    lines: list[Sequence[str | Markup]] = []
    for one in run.rounds:
        lines += _round_lines(run, one)
    return table(head, lines) + remark(_explained(run))


def _round_lines(run: RunOfRounds, one: Round) -> Iterable[Sequence[str | Markup]]:
    """A line for each part of the held-out prompts; what concerns both stands in the first."""
    name: str | Markup = name_of_round(one.number)
    if one.number and one.number == run.best:
        name = Markup("<b>{}</b> <span class='pill'>best</span>").format(name)
    took = duration(one.seconds)
    if not one.measured:
        yield [name, "not measured yet", *[""] * (len(MEASURED) + 3), took, _training(run, one)]
        return
    for part in ("validation", "test"):
        values = one.measured.get(part)
        if values is None:
            continue
        cells = [*measured_cells(one.measured, part).values()][: len(MEASURED)]
        cells.append(f"{values['distinct_2']:.2f}")
        wins: list[str | Markup] = ["", ""]
        if part == _reporting(one):
            against = wins_text(one.measured, "previous") if one.number > 1 else ""
            wins = [wins_text(one.measured), against]
        is_first = part == "validation"
        ends = [took, _training(run, one)] if is_first else ["", ""]
        yield [name if is_first else "", part, *cells, *wins, *ends]


def _reporting(one: Round) -> str:
    """The part of the held-out prompts that wins are over."""
    return "test" if one.measured["test"] else "validation"


def _training(run: RunOfRounds, one: Round) -> str | Markup:
    report = one.folder / "train" / "run" / "report.html"
    if not report.exists():
        return ""
    place = report.relative_to(run.run_dir).as_posix()
    return Markup('<a href="{}">its training</a>').format(place)


def _explained(run: RunOfRounds) -> str:
    """How the best round is chosen, and why there are no more."""
    counts = (run.measured or run.rounds)[0].measured
    said = []
    if counts:
        prompts = counts["validation"]["prompts"]
        chosen = f"The best round is the one with the highest {run.judge} on {prompts:,} validation"
        if counts["test"]:
            chosen += f" prompts; {counts['test']['prompts']:,} test prompts have no say in it."
        else:
            chosen += " prompts; there are no test prompts, so its own numbers flatter it."
        said.append(chosen)
        part = _reporting((run.measured or run.rounds)[0])
        said.append(f"Wins are over the {part} prompts; ties count half; the interval is 95%.")
    if run.stopped:
        said.append(f"The rounds ended early: {run.stopped}.")
    elif not (run.run_dir / "rounds.json").exists():
        said.append(f"How far it is: {how_far(run.run_dir, run.recipe)}.")
    return " ".join(said)


# --- curves ---------------------------------------------------------------------------------------


def _curves(run: RunOfRounds) -> Markup:
    if not run.measured:
        return Markup('<p class="soft">Nothing was measured yet.</p>')
    figures = [_wins_chart(run, "start"), _wins_chart(run, "previous")]
    for title, key, bounds in CURVES:
        lines = []
        for tone, part in enumerate(("validation", "test"), 1):
            points = []
            for one in run.measured:
                value = (one.measured[part] or {}).get(key)
                points += [] if value is None else [(float(one.number), float(value))]
            lines.append(Series(part, points, tone, dots=True))
        figures.append(line_chart(title, lines, bounds=bounds, unit="round"))
    note = "Horizontal axis: rounds, 0 being the start."
    return Markup('<div class="grid">{}</div>').format(joined(figures)) + remark(note)


def _wins_chart(run: RunOfRounds, other: str) -> str:
    """Win rates by round, with their intervals."""
    bars, spans = [], []
    for one in run.measured[2 if other == "previous" else 1 :]:
        wins = one.measured["wins"].get(other)
        if wins is not None:
            bars.append((f"round {one.number}", float(wins["value"])))
            spans.append((float(wins["low"]), float(wins["high"])))
    name = "the start" if other == "start" else "the round before"
    return bar_chart(f"Wins against {name}", bars, spans=spans, last_stands_out=False)


# --- pairs ----------------------------------------------------------------------------------------


def _pairs(run: RunOfRounds) -> Markup:
    paired = [one for one in run.rounds if one.facts(one.pairing)]
    if not paired:
        return Markup('<p class="soft">No pairs were made yet.</p>')
    parts = [_pair_table(run, paired), _lost_table(paired), _score_table(paired)]
    parts += [_sample_pairs(one) for one in paired]
    return joined(parts)


def _pair_table(run: RunOfRounds, rounds: Sequence[Round]) -> Markup:
    is_sft = run.online["train"] == "sft"
    head = ["round", "prompts", "best responses" if is_sft else "pairs", "tokens, chosen"]
    trained = () if is_sft else TRAINED
    if not is_sft:
        head += ["tokens, rejected", "longer chosen", "margin of scores"]
        head += ["from the future"] if run.online["future"] else []
    head += ["score and length", *(name for name, _, _ in trained)]
    lines = []
    for one in rounds:
        facts, training = one.facts(one.pairing), one.facts("train")
        line = [str(one.number), f"{facts['prompts']:,}", f"{facts['pairs']:,}"]
        line.append(f"{facts['tokens of the chosen']:.1f}")
        if not is_sft:
            line.append(f"{facts['tokens of the rejected']:.1f}")
            line += [f"{facts['longer ones chosen']:.0%}", f"{facts['margin']:.3g}"]
            line += [f"{facts['chosen from the future']:.0%}"] if run.online["future"] else []
        line.append(in_cell(facts["correlation of score and length"], "{:+.2f}"))
        line += [in_cell(training.get(key), form) for _, key, form in trained]
        lines.append(line)
    said = "Score and length: mean over prompts of the correlation of score and tokens."
    if not is_sft:
        said += (
            " Log-ratios are to the reference, times beta, at the end of the training; where that "
            "of the chosen falls far below 0, training makes chosen responses less likely too."
        )
    return table(head, lines) + remark(said)


def _lost_table(rounds: Sequence[Round]) -> Markup:
    """What was lost on the way to pairs, by round."""
    reasons = list(dict.fromkeys(why for one in rounds for why in one.facts(one.pairing)["lost"]))
    head = ["lost", *(f"round {one.number}" for one in rounds)]
    lines = []
    for why in reasons:
        counts = [one.facts(one.pairing)["lost"].get(why, 0) for one in rounds]
        lines.append([why, *(f"{count:,}" if count else "" for count in counts)])
    return Markup("<h3>What was lost</h3>") + table(head, lines) if lines else Markup("")


def _score_table(rounds: Sequence[Round]) -> Markup:
    """What scorers said of the sampled responses, by round."""
    head = ["scorer", "round", "responses", "finished", "mean", "best of a prompt"]
    head += ["worst of a prompt", "prompts that tie", "without a score"]
    lines = []
    for one in rounds:
        for stage in [name for name in one.stages if name.startswith(("score", "rescore"))]:
            kind, _, source = stage.partition("-")
            sampled = one.facts(f"sample-{source}" if source else "sample")
            source = f", {source}" if source else ""
            source += ", refreshed" if kind == "rescore" else ""
            for spec, facts in one.facts(stage).items():
                line = [spec, f"{one.number}{source}", f"{sampled.get('responses', 0):,}"]
                line.append(in_cell(sampled.get("finished"), "{:.0%}"))
                for key in ("mean", "best of a prompt", "worst of a prompt"):
                    line.append(in_cell(facts[key], "{:.3f}"))
                line.append(f"{facts['prompts whose responses all tie']:,}")
                lines.append([*line, f"{facts['without a score']:,}"])
    if not lines:
        return Markup("")
    return Markup("<h3>Scores of the sampled responses</h3>") + table(head, lines)


def _sample_pairs(one: Round) -> Markup:
    """The first pairs of a round."""
    shown = []
    for row in one.pairs(MOST_PAIRS):
        sides = [("best", row.get("completion"), row.get("score"), "")]
        if "chosen" in row:
            sides = []
            for name, score, source in zip(
                ("chosen", "rejected"), row["scores"], row["written_by"], strict=True
            ):
                sides.append((name, row[name], score, source))
        answers = joined(
            _answer(f"{name}, {_score(score)}", _said(text), "" if who == "policy" else who)
            for name, text, score, who in sides
        )
        shown.append(_sample(row["prompt"], answers))
    if not shown:
        return Markup("")
    summary = f"The first pairs of round {one.number}" if len(shown) > 1 else "A pair"
    return Markup("<details><summary>{}</summary><div>{}</div></details>").format(
        summary, joined(shown)
    )


# --- responses ------------------------------------------------------------------------------------


def _lengths(run: RunOfRounds) -> Markup:
    """Rewards over lengths of held-out responses, before and after."""
    if len(run.measured) < 2:
        return Markup("")
    last = run.best or len(run.measured) - 1
    clouds = []
    for tone, place in enumerate((0, last), 1):
        points = run.lengths_and_rewards(place, MOST_POINTS)
        clouds.append(Series(f"round {place}" if place else "start", points, tone))
    chart = point_chart("Reward over tokens, held-out responses", clouds)
    points = []
    for one in run.rounds:
        value = one.facts(one.pairing).get("correlation of score and length")
        points += [] if value is None else [(float(one.number), float(value))]
    title = "Correlation of score and tokens over the responses to a prompt"
    curve = line_chart(title, [Series("mean", points, dots=True)], unit="round")
    note = (
        "A reward that grows with the length alone is a warning: longer responses then win without "
        "being better. online.pairing.length_penalty takes it off."
    )
    if not chart and not curve:
        return Markup("")
    return Markup('<div class="grid">{}</div>').format(joined([chart, curve])) + remark(note)


def _samples(run: RunOfRounds) -> Markup:
    """The responses of each round to the same prompts."""
    by_prompt: dict[str, list[Markup]] = {}
    for one in run.measured:
        name = f"round {one.number}" if one.number else "start"
        for sample in one.samples():
            label = f"{name}, {_score(sample['score'])}"
            prompt = _prompt(sample["prompt"])
            by_prompt.setdefault(prompt, []).append(_answer(label, sample["text"]))
    if not by_prompt:
        return Markup("")
    shown = [_sample(prompt, joined(answers)) for prompt, answers in by_prompt.items()]
    return joined(shown) + remark(f"One sampled response each, with its {run.judge}.")


def _sample(prompt: Any, answers: Markup) -> Markup:
    return Markup(
        '<div class="sample"><div class="ask"><span class="label">prompt</span>'
        '<div class="text">{}</div></div><div class="answers wrap">{}</div></div>'
    ).format(_prompt(prompt), answers)


def _answer(label: str, text: str, who: str = "") -> Markup:
    name = f"{label}, by the {who}" if who else label
    said = text if text.strip() else "(empty answer)"
    return Markup('<div><span class="label">{}</span><div class="text">{}</div></div>').format(
        name, said
    )


def _prompt(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt_text(PromptRow(prompt=prompt, origin=""))


def _said(turns: Any) -> str:
    return turns if isinstance(turns, str) else str(turns[-1]["content"])


def _score(value: float | None) -> str:
    return "no score" if value is None else number(value)


# --- the card -------------------------------------------------------------------------------------


def rounds_of_card(run_dir: Path) -> str:
    """Return what the model card says of the rounds, as Markdown."""
    run = read_rounds(run_dir)
    names = [column for column, _, _ in MEASURED]
    lines = [["round", "measured on", *names, WINS], ["---"] * (len(names) + 3)]
    for one in run.measured:
        for part in ("validation", "test"):
            if one.measured[part]:
                cells = list(measured_cells(one.measured, part).values())
                cells[-1] = cells[-1] if part == _reporting(one) else ""
                mark = " (this model)" if one.number and one.number == run.best else ""
                lines.append([f"{name_of_round(one.number)}{mark}", part, *cells])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    specs = ", ".join(f"`{spec}`" for spec in run.online["reward_models"]) or "nothing"
    gold = run.online["evaluation"]["gold"]
    judged = f"; `gold` is by `{gold}`, which training did not see" if gold else ""
    if gold and gold == (run.online.get("oracle") or {}).get("scorer"):
        judged = f"; `gold` is by `{gold}`, the oracle, which training heard on other prompts"
    said = f"The reward is by {specs}{judged}.{_of_oracle(run)} {_explained(run)}"
    return f"## Rounds\n\n{said}\n\n{table}"


def _of_oracle(run: RunOfRounds) -> str:
    """What the card says of the labels that the reward was trained on meanwhile."""
    asked = [one.facts("query") for one in run.rounds if one.facts("query")]
    if not asked:
        return ""
    labels, spent = sum(one["labels"] for one in asked), asked[-1]["spent"]
    return (
        f" Pairs were made by that reward model as it was trained on {labels:,} labels of "
        f"`{run.online['oracle']['scorer']}`, of {spent:,} queries; measured is with it as it was."
    )
