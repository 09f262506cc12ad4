"""Rows as a training reads them, as one HTML page: their tokens coloured by what is trained, where
they are cut, and what each turn comes to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from markupsafe import Markup

from aligner.reports.pieces import joined, remark, table
from aligner.reports.training import page
from aligner.tokenization.row_view import ShownRow, ShownSequence, ShownToken, TurnCount

FOLDED = 400
"""Tokens from which a run that is not trained is folded."""
KEPT = (150, 60)
"""Tokens of it that stay in sight, at its beginning and its end."""

_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]"
)
"""Characters that show nothing, or turn the direction of what follows."""

LEGEND = (
    ("tok on", "trained"),
    ("tok", "read, not trained"),
    ("tok special", "special token"),
    ("tok cut", "cut off"),
)


def tokens_page(title: str, facts: Sequence[tuple[str, str]], rows: Sequence[ShownRow]) -> str:
    """Return the page. `facts`: (what, value) about all rows, told at its top."""
    spans = (Markup('<span class="{}">{}</span>').format(kind, word) for kind, word in LEGEND)
    legend = Markup('<p class="tokens small">{}</p>').format(Markup(" ").join(spans))
    return page(
        title, "rows as a training reads them", list(facts), legend + joined(map(_row, rows))
    )


def _row(row: ShownRow) -> Markup:
    """A row: its turns, what there is to say of it, and its tokens."""
    parts = [Markup("<h2>{}</h2>").format(row.origin)]
    if row.problem:
        parts.append(Markup('<p class="warning">not trained: {}</p>').format(row.problem))
    if row.turns:
        parts.append(_turns(row.turns))
    parts.append(remark(Markup("<br>").join(row.notes)))
    for sequence in row.sequences:
        count = f"{sequence.name}: {len(sequence.tokens):,} tokens"
        parts.append(Markup("<h3>{}</h3>").format(count))
        parts.append(Markup('<div class="tokens">{}</div>').format(joined(_runs(sequence))))
    return Markup("<section>{}</section>").format(joined(parts))


def _turns(turns: Sequence[TurnCount]) -> Markup:
    """What each turn comes to; what is cut off stands there if something is."""
    lines = [(turn.role, f"{turn.tokens:,}", f"{turn.trained:,}") for turn in turns]
    if not any(turn.cut for turn in turns):
        return table(("turn", "tokens", "trained"), lines)
    cut = [(*line, f"{turn.cut:,}" if turn.cut else "") for line, turn in zip(lines, turns)]
    return table(("turn", "tokens", "trained", "cut off"), cut)


def _runs(sequence: ShownSequence) -> Iterator[Markup]:
    """The tokens of a sequence, with the long stretches folded that are not trained."""
    placed = list(enumerate(sequence.tokens))
    for _, group in groupby(placed, key=lambda item: (item[1].trained, item[1].cut)):
        run = list(group)
        drawn = [_token(place, token, sequence.marks.get(place)) for place, token in run]
        if run[0][1].trained or len(run) <= FOLDED:
            yield joined(drawn)
            continue
        first, last = KEPT
        hidden = Markup("<details><summary>{:,} tokens more</summary>{}</details>").format(
            len(run) - first - last, joined(drawn[first:-last])
        )
        yield joined([*drawn[:first], hidden, *drawn[-last:]])


def _token(place: int, token: ShownToken, mark: str | None) -> Markup:
    kinds = {"on": token.trained, "special": token.special, "cut": token.cut}
    classes = " ".join(["tok", *(name for name, holds in kinds.items() if holds)])
    span = Markup('<span class="{}" title="{}: {}">{}</span>').format(
        classes, place, token.id, _visible(token.text)
    )
    if mark is None:
        return span
    return Markup('<b class="mark">{}</b>').format(mark) + span


def _visible(text: str) -> str:
    """A text with what cannot be seen written out; a line end is marked and kept."""
    written = _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)
    return written.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n") or "\N{MIDDLE DOT}"
