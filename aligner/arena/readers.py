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

from aligner.arena.cells import (
    Row,
    Unusable,
    grade_of,
    number_of,
    seat_that_won,
    style_of_side,
    style_record,
    text_of,
    two_models,
    verdict_of,
)
from aligner.arena.merging import Merge, Played, add_battle
from aligner.arena.records import READ_WELL, RULE, style_of
from aligner.arena.votes import VoteBuilder, Votes
from aligner.data.files import BLANK, Unreadable, kind_of_file, read_file
from aligner.errors import DataError, Problem

MOST_PROBLEMS = 20

PROMPT_COLUMNS = ("prompt_id", "question_id", "uid", "prompt", "instruction")
JUDGE_COLUMNS = ("judge_id", "judge", "annotator")
LONGEST_ID = 64
"""Prompts whose text is longer are known by its hash."""


REPEATED = "battles that were in the log already"


@dataclass(frozen=True)
class Reading:
    """How files are read. `baseline`: whom Arena-Hard's judgments compare with where they do not
    say."""

    form: str = "auto"
    merge: Merge = "mean"
    tie_margin: float = 0.0
    category: str = "category"
    baseline: str | None = None


@dataclass
class _Sink:
    """Where rows go: votes at once, games when all of their battle were read."""

    how: Reading
    forms: Mapping[str, Callable[[Row, str, _Sink], None]]
    builder: VoteBuilder = field(default_factory=VoteBuilder)
    games: dict[str, dict[str, tuple[int, Played]]] = field(default_factory=dict)
    battles: set[str] = field(default_factory=set)
    answers: dict[tuple[str, str], str] = field(default_factory=dict)
    """Model and prompt -> the digest of its answer in the first game that says so."""
    changed: dict[str, set[str]] = field(default_factory=dict)
    """Model -> prompts to which games have several answers of it."""
    revisions: dict[str, set[str]] = field(default_factory=dict)
    """Judge -> what decided its verdicts."""
    without_prompt: int = 0
    ruled: int | None = None
    """Games that a rule decided and no judge, which are left out where they are counted."""


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
    A row of the form `arena` is a game, in which model_a was seen first. Games that a rule decided
    say nothing about a judge.

    Raises: DataError, as `read_votes` does, and for files without games.
    """
    sink = _Sink(how, GAMES, ruled=0)
    _read_all(paths, sink)
    if sink.ruled:
        text = f"{sink.ruled:,} games were decided by a rule and not by a judge: left out"
        sink.builder.notes.append(text)
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
    sink.builder.notes += _versions(sink)
    if sink.without_prompt:
        sink.builder.notes.append(
            f"{sink.without_prompt:,} rows name no prompt ({', '.join(PROMPT_COLUMNS)}): each "
            "counts as a prompt of its own, so intervals are too narrow where prompts repeat"
        )


def _read(path: Path, sink: _Sink) -> list[Problem]:
    """Hand the rows of a file on, and return what is wrong with it."""
    if not path.is_file():
        hint = "name files of games, battles or votes"
        if (path / "battles.jsonl").is_file():
            hint = f"it is a run; name {path / 'battles.jsonl'}"
        raise DataError(f"{path} is not a file", hint)
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
        except Unusable as error:
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
    decoding = row.get("decoding")
    is_ruled = isinstance(decoding, dict) and RULE in decoding
    if sink.ruled is not None and is_ruled:
        sink.ruled += 1
        return
    first, second = two_models(row, "model_first", "model_second")
    status = text_of(row, "parse_status")
    scores: list[float | None] = [None, None]
    if status in READ_WELL:
        scores = [number_of(row, "score_first"), number_of(row, "score_second")]
    played = Played(
        first,
        second,
        text_of(row, "prompt_id"),
        scores[0],
        scores[1],
        _category(row, sink.how),
        style_record(row, "style_first"),
        style_record(row, "style_second"),
        judge=_judge(row),
        is_ruled=is_ruled,
    )
    games = sink.games.setdefault(text_of(row, "battle_id"), {})
    for _, other in games.values():
        if {other.first, other.second} != {first, second}:
            raise Unusable("battle_id", "its games are between different models")
    attempt = int(number_of(row, "attempt")) if "attempt" in row else 1
    game_id = text_of(row, "game_id")
    if game_id not in games or games[game_id][0] <= attempt:
        games[game_id] = attempt, played
    _note_versions(row, played, sink)


def _note_versions(row: Row, played: Played, sink: _Sink) -> None:
    """Keep which answers and which judge a game was about."""
    for model, seat in ((played.first, "first"), (played.second, "second")):
        digest = row.get(f"answer_{seat}_sha")
        if digest and sink.answers.setdefault((model, played.prompt), digest) != digest:
            sink.changed.setdefault(model, set()).add(played.prompt)
    if row.get("judge_rev"):
        sink.revisions.setdefault(played.judge, set()).add(str(row["judge_rev"]))


def _versions(sink: _Sink) -> list[str]:
    """Say where games of one name are of several models or judges: a log keeps what was judged
    before a checkpoint, a file of answers or a judge changed."""
    last = "all of them count; battles.jsonl of a run has the last ones alone"
    found = []
    for model, prompts in sorted(sink.changed.items()):
        some = "1 prompt" if len(prompts) == 1 else f"{len(prompts):,} prompts"
        found.append(f"{model} has several answers to {some} in these games, and {last}")
    for judge, revisions in sorted(sink.revisions.items()):
        if len(revisions) > 1:
            several = f"{len(revisions)} versions of the judge {judge}"
            found.append(f"there are games of {several}, and {last}")
    return found


def _battle(row: Row, where: str, sink: _Sink) -> None:
    a, b = two_models(row, "model_a", "model_b")
    battle = text_of(row, "battle_id")
    if battle in sink.battles:
        sink.builder.left_out[REPEATED] += 1
        return
    sink.battles.add(battle)
    sink.builder.add(
        a,
        b,
        text_of(row, "prompt_id"),
        seat_that_won(row),
        category=_category(row, sink.how),
        styles=(style_record(row, "style_a"), style_record(row, "style_b")),
    )


def _arena(row: Row, where: str, sink: _Sink) -> None:
    a, b = two_models(row, "model_a", "model_b")
    outcome, grade = verdict_of(row, a, b)
    weight = number_of(row, "weight") if row.get("weight") not in (None, "") else 1.0
    if weight <= 0:
        raise Unusable("weight", f"{weight:g} is not above 0")
    sink.builder.add(
        a,
        b,
        _prompt(row, where, sink),
        outcome,
        category=_category(row, sink.how),
        weight=weight,
        seat=1.0,
        grade=grade,
        styles=(style_of_side(row, "a"), style_of_side(row, "b")),
    )


def _arena_game(row: Row, where: str, sink: _Sink) -> None:
    a, b = two_models(row, "model_a", "model_b")
    outcome, grade = verdict_of(row, a, b)
    judge, prompt = _judge(row), _prompt(row, where, sink)
    score = 2.0 * outcome - 1.0 if math.isnan(grade) else grade
    category, styles = _category(row, sink.how), (style_of_side(row, "a"), style_of_side(row, "b"))
    played = Played(a, b, prompt, score, 0.0, category, *styles, is_graded=True, judge=judge)
    battle = repr((judge, prompt, *sorted((a, b))))
    sink.games.setdefault(battle, {})[where] = 1, played


def _alpaca(row: Row, where: str, sink: _Sink) -> None:
    first, second = two_models(row, "generator_1", "generator_2")
    if row.get("preference") is None:
        sink.builder.left_out["annotations without a preference"] += 1
        return
    preference = number_of(row, "preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise Unusable("preference", f"{preference:g} is neither 0 nor from 1 to 2")
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
        raise Unusable("baseline", "is missing", "name the baseline with --baseline")
    model, other = two_models(
        {"model": row.get("model"), "baseline": baseline}, "model", "baseline"
    )
    games = row.get("games")
    if not isinstance(games, list) or not 1 <= len(games) <= 2:
        raise Unusable("games", "is not a list of one or two games")
    prompt, category = _prompt(row, where, sink), _category(row, sink.how)
    battle = sink.games.setdefault(f"{where}:{prompt}", {})
    for number, game in enumerate(games):
        score = game.get("score") if isinstance(game, dict) else None
        grade = grade_of(score, number)
        names = (other, model) if number == 0 else (model, other)
        second = None if grade is None else 0.0
        battle[str(number)] = (
            1,
            Played(*(*names, prompt, grade, second, category), is_graded=True, judge=_judge(row)),
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
