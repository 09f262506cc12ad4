"""The part of the report that shows how the method came about: failures by class and step, what
became of the candidates, and each method in force as a difference to the one before."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from html import escape
from itertools import pairwise

from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.failures import Failure
from aligner.builders.evolve.history import Ended, History, Measured
from aligner.reports.charts import Series, line_chart

MOST_CURVES = 6
"""Of all failures and of the most frequent classes; the table has all."""

ENDED: dict[Ended | None, str] = {
    "solved": "no failure was left",
    "patience": "no better method was found for as many steps as `patience` allows",
    "no_fall": "the failure rate fell no more",
    "steps": "all steps were done",
    None: "it is not over yet",
}

_STYLE = (
    "<style>.method pre{white-space:pre-wrap;overflow-wrap:anywhere}.method ins{"
    "text-decoration:none;background:#2e9e5b33}.method del{background:#d0404033}</style>"
)


def methods_section(history: History) -> str:
    """Return the section as HTML; a sentence where nothing was optimized."""
    if history.first is None:
        return f"<p>The method was used as it starts.</p>{_STYLE}{_whole(history.start)}"
    return "".join(
        (
            _STYLE,
            f"<p>{escape(_sentence(history))}</p>",
            f'<div class="grid">{_curve(history)}</div>',
            _steps_table(history),
            "".join(_changes(history)),
        )
    )


def _sentence(history: History) -> str:
    in_force = history.in_force()
    rates = [measured.failure_rate for _, measured in in_force]
    changes = sum(step.chosen is not None for step in history.steps)
    steps = "1 step" if len(history.steps) == 1 else f"{len(history.steps)} steps"
    first = in_force[0][1]
    return (
        f"Failure rate {rates[0]:.0%} at the start and {rates[-1]:.0%} at the end, on "
        f"{first.covered} of {first.asked} development instructions; {changes} new methods in "
        f"{steps}; {ENDED[history.ended]}."
    )


def _curve(history: History) -> str:
    in_force = [measured for _, measured in history.in_force()]
    totals: Counter[Failure] = Counter()
    for one in in_force:
        totals.update(one.classes)
    shown = [name for name, _ in totals.most_common(MOST_CURVES - 1)]
    curves = {"all failures": [one.failure_rate for one in in_force]}
    curves |= {_words(name): _shares(in_force, name) for name in shown}
    series = [
        Series(name, list(enumerate(values)), tone, dots=True)
        for tone, (name, values) in enumerate(curves.items(), 1)
    ]
    return line_chart("Failures of the method in force", series, bounds=(0.0, 1.0))


def _shares(in_force: Iterable[Measured], name: Failure) -> list[float]:
    return [_of(one.classes.get(name, 0), one.covered) for one in in_force]


def _steps_table(history: History) -> str:
    rows = []
    for number, (method, measured) in enumerate(history.in_force()):
        step = history.steps[number - 1] if number else None
        outcomes = [one.outcome for one in step.candidates] if step is not None else []
        counts = [(name, outcomes.count(name)) for name in dict.fromkeys(outcomes)]
        cells = (
            str(number) if number else "start",
            f"{measured.failure_rate:.0%}",
            _listed(measured.classes.items()),
            _listed(counts),
            f"{_of(measured.added_words, measured.evolved):+.0f}",
            f"{_of(measured.questions, measured.evolved):.0%}",
            f"{measured.issue_rate:.0%}" if measured.judged else "",
            f"{method.id[:8]}{' new' if step is not None and step.chosen is not None else ''}",
        )
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    heads = ("step", "failures", "of which", "candidates", "added words", "answers that ask")
    head = "".join(f"<th>{name}</th>" for name in (*heads, "issues", "method"))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        '</div><p class="soft small">Added words: of an evolved instruction, on the mean. Answers '
        "that ask: that end with a question mark, whatever they begin with; many of them without a "
        "failure mean that the rules do not know this model's words.</p>"
    )


def _of(count: int, whole: int) -> float:
    return count / whole if whole else 0.0


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{_words(name)} {count}" for name, count in counts)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _changes(history: History) -> list[str]:
    """The first method whole, then each that came into force as what changed, and the last one
    whole again."""
    methods = [(0, history.start)]
    for number, (method, _) in enumerate(history.in_force()):
        if method.id != methods[-1][1].id:
            methods.append((number, method))
    parts = [_whole(history.start)]
    for (_, before), (number, after) in pairwise(methods):
        note = f": {after.note}" if after.note else ""
        parts.append(_details(f"Step {number}{note}", difference(before.steps, after.steps)))
    if len(methods) > 1:
        parts.append(_details("The method at the end", escape(methods[-1][1].steps)))
    return parts


def _whole(method: EvolvingMethod) -> str:
    return _details("The method at the start", escape(method.steps))


def _details(title: str, body: str) -> str:
    head = f"<summary>{escape(title)}</summary>"
    return f'<details class="method">{head}<pre>{body}</pre></details>'


def difference(before: str, after: str) -> str:
    """Return the text after as HTML, with what is new and what is gone marked word by word."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    parts = []
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        gone, come = "".join(old[start:end]), "".join(new[new_start:new_end])
        if kind == "equal":
            parts.append(escape(come))
            continue
        parts += [f"<del>{escape(gone)}</del>"] if gone else []
        parts += [f"<ins>{escape(come)}</ins>"] if come else []
    return "".join(parts)
