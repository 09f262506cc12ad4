"""Votes from files: our own logs of games and battles, and what other arenas write.

    games        `aligner.arena.records.Game`, one a line; merged by a rule of `merging.py`
    battles      `aligner.arena.records.Battle`, one a line
    arena        rows with `model_a`, `model_b`, `winner`, as JSON lines, JSON, CSV or Parquet
    alpaca_eval  annotations of AlpacaEval: `generator_1`, `generator_2`, `preference`
    arena_hard   judgments of Arena-Hard: `model`, perhaps `baseline`, `games` with `score`

What cannot be used is an error that names file, line and column: a winner that is neither of the
two, say. Only a judge's reply that could not be read is no mistake of the file; it is counted and
left out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.arena.merging import Merge, Played, add_battle
from aligner.arena.records import READ_WELL, style_of
from aligner.arena.votes import UNKNOWN, StyleCounts, VoteBuilder, Votes
from aligner.data.checks import kind
from aligner.data.files import BLANK, Unreadable, kind_of_file, read_file
from aligner.errors import DataError, Problem

MOST_PROBLEMS = 20

PROMPT_COLUMNS = ("prompt_id", "question_id", "uid", "prompt", "instruction")
JUDGE_COLUMNS = ("judge_id", "judge", "annotator")
TEXT_COLUMNS = {
    "a": ("conversation_a", "answer_a", "response_a", "output_a"),
    "b": ("conversation_b", "answer_b", "response_b", "output_b"),
}
LONGEST_ID = 64
"""Prompts whose text is longer are known by its hash."""

A_WINS = ("model_a", "a", "A")
B_WINS = ("model_b", "b", "B")
TIES = ("tie", "tie (bothbad)", "bothbad", "both_bad", "both bad", "draw")
GRADES = {"A>>B": 2.0, "A>B": 1.0, "A=B": 0.0, "B=A": 0.0, "B>A": -1.0, "B>>A": -2.0}
GRADES |= {"A<B": -1.0, "A<<B": -2.0, "B<A": 1.0, "B<<A": 2.0}
GRADES |= {"A++": 2.0, "A+": 1.0, "B+": -1.0, "B++": -2.0}
"""Verdicts with grades, as Arena-Hard and WildBench write them -> how much better the first is."""


REPEATED = "battles that were in the log already"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reading:
    """How files are read. `baseline`: whom Arena-Hard's judgments compare with where they do not
    say."""

    form: str = "auto"
    merge: Merge = "mean"
    tie_margin: float = 0.0
    category: str = "category"
    baseline: str | None = None


class _Unusable(Exception):
    """What is wrong with a row: the column, what was found there, and what to do."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(key, message, hint)
        self.key, self.message, self.hint = key, message, hint


@dataclass
class _Sink:
    """Where rows go: votes at once, games when all of their battle were read."""

    how: Reading
    forms: Mapping[str, Callable[[Row, str, _Sink], None]]
    builder: VoteBuilder = field(default_factory=VoteBuilder)
    games: dict[str, dict[str, tuple[int, Played]]] = field(default_factory=dict)
    battles: set[str] = field(default_factory=set)
    without_prompt: int = 0


def read_votes(paths: Sequence[Path], how: Reading) -> Votes:
    """All votes of the files.

    Raises: DataError with up to 20 problems, each with file, line and column.
    """
    sink = _Sink(how, FORMS)
    _read_all(paths, sink)
    for games in sink.games.values():
        battle = [played for _, played in games.values()]
        add_battle(battle, how.merge, how.tie_margin, sink.builder)
    return sink.builder.votes()


def read_games(paths: Sequence[Path], how: Reading) -> tuple[list[tuple[str, Played]], list[str]]:
    """All games of the files, each with the battle that it belongs to, and what there is to say.
    A row of the form `arena` is a game, in which model_a was seen first.

    Raises: DataError, as `read_votes` does, and for files without games.
    """
    sink = _Sink(how, GAMES)
    _read_all(paths, sink)
    found = []
    for battle, games in sink.games.items():
        found += [(battle, played) for _, played in games.values()]
    return found, sink.builder.notes


def _read_all(paths: Sequence[Path], sink: _Sink) -> None:
    """Hand all rows on; what is wrong with any of them is one error."""
    problems: list[Problem] = []
    count = 0
    for path in paths:
        for problem in _read(path, sink):
            count += 1
            if len(problems) < MOST_PROBLEMS:
                problems.append(problem)
    if problems:
        more = f", the first {MOST_PROBLEMS} of them" if count > MOST_PROBLEMS else ""
        rows = "1 row" if count == 1 else f"{count:,} rows"
        raise DataError(f"{rows} cannot be used{more}", "correct or remove them", problems)
    if sink.without_prompt:
        sink.builder.notes.append(
            f"{sink.without_prompt:,} rows name no prompt ({', '.join(PROMPT_COLUMNS)}): each "
            "counts as a prompt of its own, so intervals are too narrow where prompts repeat"
        )


def _read(path: Path, sink: _Sink) -> list[Problem]:
    """Hand the rows of a file on, and return what is wrong with it."""
    if not path.is_file():
        raise DataError(f"{path} is not a file", "name files of games, battles or votes")
    if kind_of_file(path) in (None, ".txt"):
        raise DataError(f"{path} is of no known kind", "give .jsonl, .json, .csv or .parquet")
    problems = []
    use: Callable[[Row, str, _Sink], None] | None = None
    for number, row in read_file(path):
        if row is BLANK:
            continue
        where = f"{path}:{number}"
        if isinstance(row, Unreadable):
            if use in (_game, _battle) and _is_cut_off(path, number):
                sink.builder.notes.append(f"{where} was cut off by a kill, and is left out")
            else:
                problems.append(Problem(row.reason, where))
            continue
        if use is None:
            form = _form(row, path, sink.how.form)
            if form not in sink.forms:
                raise DataError(
                    f"{path}: rows of the form {form} do not say in which order answers were seen",
                    f"give rows of the forms {', '.join(sink.forms)}",
                )
            use = sink.forms[form]
        if judge := _judge(row):
            sink.builder.judges.add(judge)
        try:
            use(row, where, sink)
        except _Unusable as error:
            problems.append(Problem(error.message, where, error.key, error.hint))
    return problems


def _is_cut_off(path: Path, number: int) -> bool:
    """Whether a line of JSON lines is the last one and has no end."""
    data = path.read_bytes()
    return not data.endswith(b"\n") and data.count(b"\n") == number - 1


def _form(row: Row, path: Path, wanted: str) -> str:
    if wanted != "auto":
        return wanted
    for form, keys in MARKS.items():
        if keys <= row.keys():
            return form
    raise DataError(
        f"{path}: no form of votes has the columns {', '.join(map(str, list(row)[:12]))}",
        "give rows with model_a, model_b and winner, or say with --form what they are",
    )


def _game(row: Row, where: str, sink: _Sink) -> None:
    first, second = _models(row, "model_first", "model_second")
    status = _text(row, "parse_status")
    scores: list[float | None] = [None, None]
    if status in READ_WELL:
        scores = [_number(row, "score_first"), _number(row, "score_second")]
    played = Played(
        first,
        second,
        _text(row, "prompt_id"),
        scores[0],
        scores[1],
        _category(row, sink.how),
        _style_record(row, "style_first"),
        _style_record(row, "style_second"),
        judge=_judge(row),
    )
    games = sink.games.setdefault(_text(row, "battle_id"), {})
    for _, other in games.values():
        if {other.first, other.second} != {first, second}:
            raise _Unusable("battle_id", "its games are between different models")
    attempt = int(_number(row, "attempt")) if "attempt" in row else 1
    game_id = _text(row, "game_id")
    if game_id not in games or games[game_id][0] <= attempt:
        games[game_id] = attempt, played


def _battle(row: Row, where: str, sink: _Sink) -> None:
    a, b = _models(row, "model_a", "model_b")
    battle = _text(row, "battle_id")
    if battle in sink.battles:
        sink.builder.left_out[REPEATED] += 1
        return
    sink.battles.add(battle)
    sink.builder.add(
        a,
        b,
        _text(row, "prompt_id"),
        _outcome(row, a, b),
        category=_category(row, sink.how),
        styles=(_style_record(row, "style_a"), _style_record(row, "style_b")),
    )


def _arena(row: Row, where: str, sink: _Sink) -> None:
    a, b = _models(row, "model_a", "model_b")
    outcome, grade = _verdict(row, a, b)
    weight = _number(row, "weight") if row.get("weight") not in (None, "") else 1.0
    if weight <= 0:
        raise _Unusable("weight", f"{weight:g} is not above 0")
    sink.builder.add(
        a,
        b,
        _prompt(row, where, sink),
        outcome,
        category=_category(row, sink.how),
        weight=weight,
        seat=1.0,
        grade=grade,
        styles=(_style(row, "a"), _style(row, "b")),
    )


def _arena_game(row: Row, where: str, sink: _Sink) -> None:
    a, b = _models(row, "model_a", "model_b")
    outcome, grade = _verdict(row, a, b)
    judge, prompt = _judge(row), _prompt(row, where, sink)
    score = 2.0 * outcome - 1.0 if math.isnan(grade) else grade
    category, styles = _category(row, sink.how), (_style(row, "a"), _style(row, "b"))
    played = Played(a, b, prompt, score, 0.0, category, *styles, is_graded=True, judge=judge)
    battle = repr((judge, prompt, *sorted((a, b))))
    sink.games.setdefault(battle, {})[where] = 1, played


def _verdict(row: Row, a: str, b: str) -> tuple[float, float]:
    """1 where a won, 0.5 or 0, and the grade where the verdict has one."""
    grade = GRADES.get(_text(row, "winner"), UNKNOWN)
    if math.isnan(grade):
        return _outcome(row, a, b), grade
    return 0.5 + 0.5 * math.copysign(grade != 0, grade), grade


def _alpaca(row: Row, where: str, sink: _Sink) -> None:
    first, second = _models(row, "generator_1", "generator_2")
    if row.get("preference") is None:
        sink.builder.left_out["annotations without a preference"] += 1
        return
    preference = _number(row, "preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise _Unusable("preference", f"{preference:g} is neither 0 nor from 1 to 2")
    styles = tuple(
        style_of(row[name]) if isinstance(row.get(name), str) else None
        for name in ("output_1", "output_2")
    )
    sink.builder.add(
        first,
        second,
        _prompt(row, where, sink),
        0.5 if preference == 0 else 2.0 - preference,
        category=_category(row, sink.how),
        styles=(styles[0], styles[1]),
    )


def _arena_hard(row: Row, where: str, sink: _Sink) -> None:
    baseline = row.get("baseline") or sink.how.baseline
    if not baseline:
        raise _Unusable("baseline", "is missing", "name the baseline with --baseline")
    model, other = _models({"model": row.get("model"), "baseline": baseline}, "model", "baseline")
    games = row.get("games")
    if not isinstance(games, list) or not 1 <= len(games) <= 2:
        raise _Unusable("games", "is not a list of one or two games")
    prompt, category = _prompt(row, where, sink), _category(row, sink.how)
    battle = sink.games.setdefault(f"{where}:{prompt}", {})
    for number, game in enumerate(games):
        score = game.get("score") if isinstance(game, dict) else None
        grade = _grade(score, number)
        names = (other, model) if number == 0 else (model, other)
        second = None if grade is None else 0.0
        battle[str(number)] = (
            1,
            Played(*(*names, prompt, grade, second, category), is_graded=True, judge=_judge(row)),
        )


def _grade(score: Any, number: int) -> float | None:
    """How much better the first answer is; None where the judge gave no verdict."""
    if score is None:
        return None
    if score not in GRADES:
        raise _Unusable(f"games[{number}].score", f"{score!r} is no verdict such as A>B")
    return GRADES[score]


def _models(row: Row, first: str, second: str) -> tuple[str, str]:
    names = _text(row, first), _text(row, second)
    if names[0] == names[1]:
        raise _Unusable(second, f"{names[0]!r} meets itself")
    return names


def _outcome(row: Row, a: str, b: str) -> float:
    """1 where a won. A winner may be named, or be one of the words of public arenas."""
    winner = _text(row, "winner")
    meant = {}
    for words, outcome in (((*A_WINS, a), 1.0), ((*B_WINS, b), 0.0), (TIES, 0.5)):
        if winner in words:
            meant[outcome] = True
    if len(meant) == 1:
        return next(iter(meant))
    if meant:
        raise _Unusable("winner", f"{winner!r} is a word for one outcome and a model's name")
    raise _Unusable(
        "winner",
        f"{winner!r} is neither {a!r} nor {b!r}",
        "write model_a, model_b, tie, or one of the two names",
    )


def _judge(row: Row) -> str:
    return next((str(row[name]) for name in JUDGE_COLUMNS if row.get(name) is not None), "")


def _prompt(row: Row, where: str, sink: _Sink) -> str:
    for name in PROMPT_COLUMNS:
        value = row.get(name)
        if isinstance(value, int | str) and str(value).strip():
            text = str(value)
            if len(text) <= LONGEST_ID:
                return text
            return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    sink.without_prompt += 1
    return where


def _category(row: Row, how: Reading) -> str:
    value = row.get(how.category)
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if value is None else f"is {kind(value)}, not a text"
        raise _Unusable(name, "is empty" if isinstance(value, str) else found)
    return value


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    try:
        number = float(value) if isinstance(value, int | float | str) else UNKNOWN
    except ValueError:
        number = UNKNOWN
    if isinstance(value, bool) or not math.isfinite(number):
        raise _Unusable(name, f"{value!r} is not a finite number")
    return number


def _style_record(row: Row, name: str) -> Mapping[str, Any] | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _Unusable(name, f"is {kind(value)}, not a style")
    return {key: _number(value, key) for key in value}


def _style(row: Row, side: str) -> StyleCounts:
    """Style of an answer: counted from its text, else as the row has it."""
    for name in TEXT_COLUMNS[side]:
        if name in row and (text := _answer(row[name])) is not None:
            return style_of(text)
    counted = row.get("conv_metadata")
    if isinstance(counted, dict):
        return {
            "length": _number(counted, f"sum_assistant_{side}_tokens"),
            "headers": _sum(counted.get(f"header_count_{side}")),
            "list_items": _sum(counted.get(f"list_count_{side}")),
            "bold": _sum(counted.get(f"bold_count_{side}")),
        }
    name = f"len_{side}"
    if row.get(name) in (None, ""):
        return None
    if (length := _number(row, name)) < 0:
        raise _Unusable(name, f"{length:g} is below 0")
    return {"length": length}


def _answer(value: Any) -> str | None:
    """What a model wrote: a text, or the assistant's turns of a conversation."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    turns = (turn for turn in value if isinstance(turn, dict) and turn.get("role") == "assistant")
    return "\n".join(str(turn.get("content") or "") for turn in turns)


def _sum(value: Any) -> float:
    """Counts of several kinds, such as headers of each level, together."""
    if isinstance(value, dict):
        return float(sum(_number(value, key) for key in value))
    return UNKNOWN if value is None else _number({"count": value}, "count")


FORMS: dict[str, Callable[[Row, str, _Sink], None]] = {
    "games": _game,
    "battles": _battle,
    "arena_hard": _arena_hard,
    "alpaca_eval": _alpaca,
    "arena": _arena,
}

GAMES = {"games": _game, "arena_hard": _arena_hard, "arena": _arena_game}
"""Forms whose rows are games, each with the order of its answers."""

MARKS = {
    "games": {"game_id", "battle_id", "parse_status"},
    "battles": {"battle_id", "model_a", "model_b", "winner"},
    "arena_hard": {"model", "games"},
    "alpaca_eval": {"generator_1", "generator_2"},
    "arena": {"model_a", "model_b", "winner"},
}
"""Form -> columns that tell it; the first that fits counts."""
