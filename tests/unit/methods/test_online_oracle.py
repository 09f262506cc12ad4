"""The oracle of online rounds: what it is asked, what it said once, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aligner.config.load import load_recipe
from aligner.config.oracle import Oracle, queries_of
from aligner.config.recipe import Model
from aligner.data.rows import PromptRow
from aligner.endpoints.request import LLMError
from aligner.errors import EndpointError, RecipeError
from aligner.events import Event, Warned
from aligner.methods.online import query_stage
from aligner.methods.online.ledger import Ledger
from aligner.methods.online.pairing import Scored
from aligner.methods.online.query_stage import Choice, Desk, Pool, labels_of, query
from aligner.methods.online.refresh_stage import parted
from aligner.methods.online.words import oracle_cells, oracle_line
from aligner.reward_models.base import NoVerdict, Scores
from aligner.runs.stages import Stage, Stages


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


PAIR = {"prompt": "two?", "a": "2", "b": "3"}


# --- the ledger -----------------------------------------------------------------------------------


def test_an_answer_is_known_in_another_run_and_in_the_other_order() -> None:
    Ledger("judge").add(PAIR, 0.9)
    other = {**PAIR, "a": "3", "b": "2"}
    assert Ledger("judge").known(PAIR) == 0.9
    assert Ledger("judge").known(other) == pytest.approx(0.1)


@pytest.mark.parametrize("change", [{"prompt": "three?"}, {"a": "4"}, {"answer": "2"}])
def test_another_question_is_not_answered(change: dict[str, str]) -> None:
    Ledger("judge").add(PAIR, 0.9)
    assert Ledger("judge").known({**PAIR, **change}) is None
    assert Ledger("another judge").known(PAIR) is None


def test_a_line_that_a_kill_cut_short_costs_that_answer_alone() -> None:
    ledger = Ledger("judge")
    ledger.add(PAIR, 0.9)
    ledger.add({**PAIR, "a": "5"}, 0.5)
    text = ledger.file.read_bytes()
    ledger.file.write_bytes(text[:-7])
    again = Ledger("judge")
    assert again.known(PAIR) == 0.9
    assert again.known({**PAIR, "a": "5"}) is None
    again.add({**PAIR, "a": "5"}, 0.5)
    assert Ledger("judge").known({**PAIR, "a": "5"}) == 0.5


def test_a_conversation_is_a_prompt_too() -> None:
    turns = [{"role": "user", "content": "two?"}]
    Ledger("judge").add({**PAIR, "prompt": turns}, 1.0)
    assert Ledger("judge").known({**PAIR, "prompt": turns}) == 1.0
    assert Ledger("judge").known(PAIR) is None


# --- the budget -----------------------------------------------------------------------------------


def test_the_budget_is_divided_among_the_rounds_and_never_exceeded() -> None:
    evenly = Oracle(scorer="toy", budget=8)
    assert [queries_of(evenly, 3, number) for number in (1, 2, 3)] == [3, 3, 2]
    each = Oracle(scorer="toy", budget=8, queries_per_round=5)
    assert [queries_of(each, 4, number) for number in (1, 2, 3, 4)] == [5, 3, 0, 0]


# --- the choice -----------------------------------------------------------------------------------

ROWS = [
    PromptRow(text, origin=f"p.jsonl:{place}") for place, text in enumerate(["aaa", "bbb", "c"])
]


def responses(*scores: float | None, finished: bool = True) -> list[Scored]:
    return [
        Scored(f"answer {place} {score}", [1], finished, score)
        for place, score in enumerate(scores)
    ]


def chosen(shard: Sequence[Sequence[Scored]], count: int, **settings: Any) -> list[dict[str, Any]]:
    pool = Pool.of(ROWS, iter([(range(3), shard)]))
    oracle = Oracle(scorer="toy", **settings)
    return Choice(count, oracle, [], Model(name_or_path="x"), 0).among(pool)


def test_the_proxy_is_asked_where_it_is_least_sure() -> None:
    shard = [responses(0.0, 5.0), responses(0.0, 0.1), responses(0.0, 2.0)]
    found = chosen(shard, 2, selector="uncertainty")
    assert [line["prompt"] for line in found] == ["bbb", "c"]
    assert abs(found[0]["probability"] - 0.5) == pytest.approx(0.02498, abs=1e-5)  # sigmoid(.1)-.5
    assert found[0]["origin"] == "p.jsonl:1"


def test_the_pair_of_a_prompt_is_its_best_and_worst_or_the_least_sure_one() -> None:
    shard = [responses(0.0, 1.0, 3.0), [], []]
    (widest,) = chosen(shard, 1, selector="random")
    assert {widest["a"], widest["b"]} == {"answer 0 0.0", "answer 2 3.0"}
    (closest,) = chosen(shard, 1, selector="random", pair="most_uncertain")
    assert {closest["a"], closest["b"]} == {"answer 0 0.0", "answer 1 1.0"}


def test_what_was_cut_off_or_has_no_score_is_not_asked_about() -> None:
    cut = [*responses(1.0), Scored("cut", [1], False, 9.0), Scored("said", [1], True, 0.0)]
    found = chosen([cut, responses(None, 1.0), responses(2.0)], 3, selector="random")
    assert [{line["a"], line["b"]} for line in found] == [{"answer 0 1.0", "said"}]


def test_a_coreset_of_prompts_does_not_look_at_responses() -> None:
    same = [Scored("yes", [1], True, 1.0), Scored("no", [1], True, 0.0)]
    far = [Scored("quite another thing", [1], True, 1.0), Scored("zzzzzz qqqqqq", [1], True, 0.0)]
    rows = [PromptRow(text, origin="") for text in ("one two three", "one two three!", "777 888")]
    for selector, expected in (
        ("coreset_prompt", "777 888"),
        ("coreset_response", "one two three!"),
    ):
        pool = Pool.of(rows, iter([(range(3), [same, far, same])]))
        earlier = [{"prompt": "one two three", "a": "yes", "b": "no"}]
        oracle = Oracle(scorer="toy", selector=selector)
        found = Choice(1, oracle, earlier, Model(name_or_path="x"), 0).among(pool)
        assert [line["prompt"] for line in found] == [expected], selector


# --- the answers ----------------------------------------------------------------------------------


class Counting:
    """An oracle that likes long responses, and counts what it is asked."""

    name, range = "counting", (-1e9, 1e9)

    def __init__(self, fails: Callable[[str], Exception | None] = lambda text: None) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.fails = fails

    def score(self, prompts: Any, completions: Sequence[str], references: Any = None) -> Scores:
        for text in completions:
            if (error := self.fails(text)) is not None:
                raise error
        self.asked.append(tuple(completions))
        return Scores([float(len(text)) for text in completions])

    def fingerprint(self) -> str:
        return "counting"


PICKED = [
    {"id": str(n), "prompt": f"p{n}", "a": "x" * (n + 1), "b": "y" * 3, "origin": f"rows:{n}",
     "probability": 0.8}
    for n in range(5)
]  # fmt: skip
"""Lengths 1 to 5 against 3: b, b, tie, a, a."""


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Counting:
    found = Counting()
    monkeypatch.setattr(query_stage, "load_scorer", lambda spec: found)
    return found


def opened(folder: Path, told: list[Event] | None = None) -> tuple[Stage, Desk]:
    listener = None if told is None else told.append
    stage = Stages(folder, listener).open("rounds/01/query", {"of": "these"})
    return stage, Desk("toy", "a hash", folder / "oracle", "", listener)


def ask(folder: Path, told: list[Event] | None = None) -> Stage:
    stage, desk = opened(folder, told)
    settings = Oracle(scorer="toy", budget=9)
    choice = Choice(5, settings, [], Model(name_or_path="x"), 0)
    if not (stage.folder / query_stage.PICKED).exists():
        ledger = desk.ledger()
        lines = [{**one, "is_known": ledger.known(one) is not None} for one in PICKED]
        stage.write(query_stage.PICKED, lines)
    query(stage, desk, choice, lambda: pytest.fail("it is chosen already"))
    return stage


def test_each_pair_is_asked_about_once_and_gets_its_label(tmp_path: Path, oracle: Counting) -> None:
    stage = ask(tmp_path)
    assert len(oracle.asked) == 5
    assert [row["label"] for row in labels_of(stage)] == ["b", "b", "tie", "a", "a"]
    facts = stage.facts or {}
    assert (facts["queries"], facts["labels"], facts["ties"]) == (5, 4, 1)
    assert facts["disagree"] == 0.5, "the proxy prefers a of each pair"
    ask(tmp_path)
    ask(tmp_path / "another run")
    assert len(oracle.asked) == 5


def test_a_kill_between_two_answers_costs_none(tmp_path: Path, oracle: Counting) -> None:
    with pytest.MonkeyPatch.context() as patch:
        add, count = Ledger.add, iter(range(9))

        def dying(self: Ledger, pair: Any, value: float) -> None:
            add(self, pair, value)
            if next(count) == 2:
                raise KeyboardInterrupt

        patch.setattr(Ledger, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            ask(tmp_path)
    assert len(oracle.asked) == 3
    stage = ask(tmp_path)
    assert len(oracle.asked) == len(set(oracle.asked)) == 5
    assert (stage.facts or {})["from the ledger"] == 0, "they were paid by this run"
    again = ask(tmp_path / "another run")
    assert (again.facts or {})["from the ledger"] == 5


def test_a_pair_without_a_verdict_is_named_and_has_no_label(
    tmp_path: Path, oracle: Counting
) -> None:
    silent = NoVerdict("no verdict")
    silent.rows = {0: "the reply names no winner"}
    oracle.fails = lambda text: silent if text == "xx" else None
    told: list[Event] = []
    stage = ask(tmp_path, told)
    assert [row["label"] for row in labels_of(stage)] == ["b", None, "tie", "a", "a"]
    assert (stage.facts or {})["without a verdict"] == 1
    (warning,) = [event.text for event in told if isinstance(event, Warned)]
    assert "1 pairs" in warning
    assert "rows:1: the reply names no winner" in warning
    oracle.fails = lambda text: None
    (stage.folder / "done.json").unlink()
    assert labels_of(ask(tmp_path))[1]["label"] is None, "not asked again by this run"
    assert labels_of(ask(tmp_path / "another run"))[1]["label"] == "b"


def test_a_spent_budget_of_the_endpoint_ends_the_questions_and_not_the_run(
    tmp_path: Path, oracle: Counting
) -> None:
    spent = LLMError("the budget is spent (9 calls)", kind="budget", attempts=0)
    oracle.fails = lambda text: spent if text == "xxxx" else None
    told: list[Event] = []
    stage = ask(tmp_path, told)
    assert [row["id"] for row in labels_of(stage)] == ["0", "1", "2"]
    assert (stage.facts or {})["not asked"] == 2
    assert any("2 pairs were not asked about: the budget is spent" in str(event) for event in told)


def test_what_was_paid_for_before_the_budget_ended_within_a_part_is_kept(
    tmp_path: Path, oracle: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_stage, "holds", lambda card, kinds: True)  # asked 16 at a time
    spent = LLMError("the budget is spent", kind="budget", attempts=0)
    oracle.fails = lambda text: spent if text == "xxxx" else None
    assert [row["id"] for row in labels_of(ask(tmp_path))] == ["0", "1", "2", "4"]


def test_a_server_that_is_down_ends_the_run_and_names_the_pair(
    tmp_path: Path, oracle: Counting
) -> None:
    down = LLMError("no answer", "is it running?", kind="unavailable", attempts=5)
    oracle.fails = lambda text: down if text == "xxx" else None
    with pytest.raises(EndpointError, match=r"2 pairs were answered and are kept; then, at rows:2"):
        ask(tmp_path)
    oracle.fails = lambda text: None
    ask(tmp_path)
    assert len(oracle.asked) == len(set(oracle.asked)) == 5


# --- the labels -----------------------------------------------------------------------------------


def test_some_labels_of_a_round_are_held_out_for_ever() -> None:
    labels = [{"id": str(n), "label": "a" if n % 2 else "b"} for n in range(10)]
    labels += [{"id": "tie", "label": "tie"}, {"id": "none", "label": None}]
    trained, held_out = parted(labels, 0.2, seed=1)
    assert (len(trained), len(held_out)) == (8, 2)
    assert {row["label"] for row in [*trained, *held_out]} == {"a", "b"}
    assert parted(labels, 0.2, seed=1) == (trained, held_out)
    assert [len(part) for part in parted(labels[:2], 0.2, seed=1)] == [1, 1]
    assert [len(part) for part in parted(labels[:1], 0.2, seed=1)] == [1, 0]
    assert [len(part) for part in parted(labels, 0.0, seed=1)] == [10, 0]


QUERY = {
    "spent": 100, "budget": 150, "queries": 50, "from the ledger": 3, "labels": 40, "ties": 10,
    "without a verdict": 0, "disagree": 0.375,
}  # fmt: skip


def test_what_is_shown_of_an_oracle() -> None:
    refresh = {"held out": 8, "accuracy": {"original": 0.5, "before": 0.625, "after": 0.75}}
    assert oracle_cells(QUERY, refresh) == {
        "queries": "100 of 150",
        "oracle disagrees": "38% to 25%",
    }
    assert oracle_cells(QUERY, {})["oracle disagrees"] == "38%"
    assert oracle_cells({}, {}) == {"queries": "", "oracle disagrees": ""}
    assert oracle_line(QUERY, refresh) == (
        "100 of 150 queries spent, 50 of them now (3 answers were in the ledger); 40 labels; "
        "10 ties; the proxy disagrees with 38%; of 8 held-out ones with 38%, and once it is "
        "refreshed with 25%"
    )


# --- the recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (["online.reward_models=[a,b]"], "online.oracle: refreshes one proxy"),
        (["online.reward_models=[toy]"], "online.oracle.scorer: is `toy`, which is the proxy"),
        (["online.oracle.queries_per_round=201"], "online.oracle.queries_per_round: is 201"),
        (
            ["online.oracle.selector=random", "online.oracle.embedding=policy"],
            "online.oracle.embedding: has no effect",
        ),
        (["online.reward_models=[]", "online.self_rewarding={}"], "online.oracle: refreshes a"),
    ],
)
def test_what_an_oracle_does_not_go_with(changes: list[str], key: str) -> None:
    settings = ["online.reward_models=[runs/reward]", "online.oracle.scorer=toy"]
    with pytest.raises(RecipeError) as caught:
        load_recipe("online", "tiny/online", [*settings, "online.evaluation.gold=toy", *changes])
    problems = [f"{problem.key}: {problem.message}" for problem in caught.value.problems]
    assert any(line.startswith(key) for line in problems), problems
