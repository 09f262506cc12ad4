"""`aligner score`: every form of rows, what comes out, and that a scoring that was stopped goes
on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, FakeEndpoint
from fakes import write_jsonl
from runner import aligner

from aligner.evaluation import scoring
from aligner.runs.partial_output import PartialOutput

GRADER = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("calls.log")

def length(prompt, completion, reference):
    with LOG.open("a") as log:
        log.write(completion + "\\n")
    return float(len(completion))

def slow(prompt, completion, reference):
    import time
    time.sleep(0.05)
    return length(prompt, completion, reference)
"""


@pytest.fixture
def grader(tmp_path: Path) -> Path:
    path = tmp_path / "grader.py"
    path.write_text(GRADER)
    return path


def calls(grader: Path) -> list[str]:
    log = grader.with_name("calls.log")
    return log.read_text().splitlines() if log.exists() else []


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scored(data: Path, *arguments: object) -> list[dict[str, Any]]:
    """The rows of a scoring that succeeds."""
    output = data.with_name("scored.jsonl")
    result = aligner("score", "--data", data, "--output", output, *arguments)
    assert result.exit_code == 0, result.output
    assert not output.with_name("scored.jsonl.part").exists()
    return lines(output)


TURNS = [{"role": "user", "content": "sort: ba"}, {"role": "assistant", "content": "ab"}]


@pytest.mark.parametrize(
    ("row", "added"),
    [
        ({"prompt": "sort: ba", "completion": "ab", "id": 7}, {"score": 1.0}),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, {"score": 1.0}),
        ({"messages": TURNS}, {"score": 1.0}),
        (
            {
                "conversations": [
                    {"from": "human", "value": "sort: ba"},
                    {"from": "gpt", "value": "ba"},
                ]
            },
            {"score": 0.0},
        ),
        ({"instruction": "sort: ba", "output": "ab"}, {"score": 1.0}),
        (
            {"prompt": "sort: ba", "chosen": "ab", "rejected": "ba"},
            {"score_chosen": 1.0, "score_rejected": 0.0},
        ),
        (
            {"chosen": TURNS, "rejected": [*TURNS[:1], {"role": "assistant", "content": "b"}]},
            {"score_chosen": 1.0, "score_rejected": 0.0},
        ),
        ({"prompt": "sort: ba", "responses": ["ab", "b", ""]}, {"scores": [1.0, 0.0, 0.0]}),
        (
            {"prompt": TURNS[:1], "completions": [{"text": "ab", "num_tokens": 2}]},
            {"scores": [1.0]},
        ),
    ],
)
def test_every_form_of_row_is_kept_and_scored(
    row: dict[str, Any], added: dict[str, Any], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [row, row])
    assert scored(data, "--reward-model", "toy") == [{**row, **added}] * 2


def test_what_generate_writes_can_be_scored(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completions": [{"text": "4"}, {"text": "5"}], "answer": "4"}]
    assert scored(write_jsonl(tmp_path / "rows.jsonl", rows), "--reward-model", "verifier:exact")[
        0
    ]["scores"] == [
        1.0,
        0.0,
    ]


def test_the_right_answer_comes_from_its_column_also_as_a_number(tmp_path: Path) -> None:
    rows = [
        {"question": "1 + 1", "reply": "it is 2", "right": 2},
        {"question": "2 + 2", "reply": "5", "right": "4"},
    ]
    columns = [
        f"--column={name}" for name in ("prompt=question", "completion=reply", "answer=right")
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert scored(data, "--reward-model", "verifier:number", *columns) == [
        {**rows[0], "score": 1.0},
        {**rows[1], "score": 0.0},
    ]


def test_turns_before_the_last_answer_belong_to_the_prompt(tmp_path: Path, grader: Path) -> None:
    grader.write_text(
        "def turns(prompt, completion, reference):\n    return float(len(prompt)) + 0.1 * "
        "len(completion)\n"
    )
    answer = [
        {
            "role": "assistant",
            "content": "wait",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
        },
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "so 5"},
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": answer}])
    assert scored(data, "--reward-model", f"verifier:{grader}:turns")[0]["score"] == 3.4


ENSEMBLE = "kind: ensemble\nmembers: [toy, 'verifier:exact']\n"


@pytest.fixture
def both(tmp_path: Path) -> Path:
    path = tmp_path / "both.yaml"
    path.write_text(ENSEMBLE)
    return path


def test_attributes_stand_beside_the_scores_they_belong_to(tmp_path: Path, both: Path) -> None:
    parts = {"toy": 1.0, "verifier:exact": 0.0, "spread": 0.5}
    wrong = {"toy": 0.0, "verifier:exact": 0.0, "spread": 0.0}
    common = {"prompt": "sort: ba", "answer": "x"}
    single = write_jsonl(tmp_path / "single.jsonl", [{**common, "completion": "ab"}])
    assert scored(single, "--reward-model", both)[0]["attributes"] == parts
    pair = write_jsonl(tmp_path / "pair.jsonl", [{**common, "chosen": "ab", "rejected": "b"}])
    row = scored(pair, "--reward-model", both, "--overwrite")[0]
    assert (row["attributes_chosen"], row["attributes_rejected"]) == (parts, wrong)
    several = write_jsonl(tmp_path / "several.jsonl", [{**common, "responses": ["ab", "b"]}])
    assert scored(several, "--reward-model", both, "--overwrite")[0]["attributes"] == [parts, wrong]


def test_a_column_that_is_there_is_not_replaced_but_others_can_be_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "sort: ba", "completion": "ab"},
        {"prompt": "sort: ba", "completion": "ab", "score": 9},
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    result = aligner("score", "--data", data, "--reward-model", "toy")
    assert result.exit_code == 3
    assert "rows.jsonl:2 has a column `score`" in result.stderr
    assert "--prefix" in result.stderr
    assert scored(data, "--reward-model", "toy", "--prefix", "toy_")[1] == {
        **rows[1],
        "toy_score": 1.0,
    }


def test_a_sample_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": "sort: ba", "completion": "ab", "id": number} for number in range(30)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = [
        row["id"] for row in scored(data, "--reward-model", "toy", "--max-rows", "7", "--seed", "3")
    ]
    assert len(found) == 7
    assert found == sorted(found)


def test_rows_come_out_as_they_came_in_whatever_they_hold(tmp_path: Path) -> None:
    line = (
        r'{"prompt": "sort: ba", "completion": "ab", "odd": "\ud800", '
        r'"deep": {"a": [1, null, "ü"]}, "x": NaN}'
    )
    data = tmp_path / "rows.jsonl"
    data.write_text(f"\n{line}\n\n", encoding="utf-8")
    (row,) = scored(data, "--reward-model", "toy")
    assert (row["odd"], row["deep"], row["x"], row["score"]) == (
        "\ud800",
        {"a": [1, None, "ü"]},
        "NaN",
        1.0,
    )


PAIRS = [
    {"prompt": "sort: ba", "chosen": "ab", "rejected": "b"},
    {"prompt": "sort: ba", "chosen": "x", "rejected": "ab"},
    {"prompt": "sort: ba", "chosen": "x", "rejected": "y"},
    {"prompt": "sort: ba", "chosen": "ab", "rejected": "z"},
]


def test_without_an_output_there_is_a_summary(tmp_path: Path) -> None:
    result = aligner(
        "score", "--data", write_jsonl(tmp_path / "rows.jsonl", PAIRS), "--reward-model", "toy"
    )
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[0] == ["toy", "n", "mean", "std", "min", "median", "max"]
    assert table[1] == ["score", "8", "0.375", "0.5175", "0", "0", "1"]
    assert table[2][:3] == ["chosen", "4", "0.5"]
    assert table[3][:3] == ["rejected", "4", "0.25"]
    assert "accuracy: 0.625 of the pairs" in result.stdout


def test_a_program_gets_the_summary_and_the_rows(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", PAIRS)
    record = json.loads(aligner("score", "--data", data, "--reward-model", "toy", "--json").stdout)
    assert (record["reward_model"], record["form"], record["output"]) == ("toy", "pair", None)
    assert record["summary"]["accuracy"] == 0.625
    assert record["rows"][1] == {**PAIRS[1], "score_chosen": 0.0, "score_rejected": 1.0}
    output = tmp_path / "new" / "scored.jsonl"
    record = json.loads(
        aligner("score", "--data", data, "--reward-model", "toy", "--json", "-o", output).stdout
    )
    assert "rows" not in record
    assert (record["output"], len(lines(output))) == (str(output), 4)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "AT_ONCE", 4)
    monkeypatch.setattr(
        scoring.score_answers,
        "__kwdefaults__",
        {**scoring.score_answers.__kwdefaults__, "at_once": 4},
    )


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{number}", "completion": "x" * number} for number in range(1, count + 1)]


BREAKS = """

def breaks(prompt, completion, reference):
    if len(completion) == 10 and not LOG.with_name("fixed").exists():
        raise ValueError("ten")
    return length(prompt, completion, reference)
"""


@pytest.mark.usefixtures("small_parts")
def test_a_scoring_that_was_stopped_goes_on_where_it_was(tmp_path: Path, grader: Path) -> None:
    grader.write_text(GRADER + BREAKS)
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(14)), tmp_path / "scored.jsonl"
    command = (
        "score",
        "--data",
        data,
        "--reward-model",
        f"verifier:{grader}:breaks",
        "--output",
        output,
    )
    first = aligner(*command)
    assert first.exit_code == 3
    assert not output.exists()
    assert "raised ValueError: ten" in first.stderr
    again = aligner(*command)
    assert (again.exit_code, "--resume" in again.stderr) == (2, True)
    grader.with_name("fixed").touch()
    before = len(calls(grader))
    with (tmp_path / "scored.jsonl.part" / "scores.jsonl").open("a") as file:
        file.write('{"part": 2, "made with": "", "result": {"8": {"val')  # a kill in a part
    result = aligner(*command, "--resume")
    assert result.exit_code == 0, result.output
    assert len(calls(grader)) - before == 14 - 8
    assert [row["score"] for row in lines(output)] == [float(number) for number in range(1, 15)]
    assert not (tmp_path / "scored.jsonl.part").exists()


def kill_at_the_end(
    data: Path, card: object, output: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> Path:
    """The scores of a scoring that is killed after the last of them is kept, and before the output
    is written."""

    def dies(self: PartialOutput, rows: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, "finish", dies)
        result = aligner("score", "--data", data, "--reward-model", card, "--output", output, *more)
        assert result.exit_code == 130, result.output
    return output.with_name(f"{output.name}.part") / "scores.jsonl"


def test_scores_that_belong_together_are_kept_all_or_none(
    tmp_path: Path, grader: Path, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a call's scores with the other half of another call would stand on two scales."""
    both.write_text(
        f"kind: ensemble\nmembers: ['verifier:{grader}:length', toy]\nstandardize: true\n"
    )
    rows = [
        {"prompt": "sort: ba", "completion": text} for text in ["ab", "a", "b", "x", "abc", "y"]
    ]
    data, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "again.jsonl"
    kept = kill_at_the_end(data, both, output, monkeypatch)
    (line,) = kept.read_bytes().splitlines()
    kept.write_bytes(line[: len(line) // 2])
    result = aligner(
        "score", "--data", data, "--reward-model", both, "--output", output, "--resume"
    )
    assert result.exit_code == 0, result.output
    assert lines(output) == scored(data, "--reward-model", both)


@pytest.mark.usefixtures("own_cache")
def test_a_call_with_an_answer_that_has_no_score_is_not_kept(
    tmp_path: Path, grader: Path, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    data, output = write_jsonl(tmp_path / "rows.jsonl", WORDS), tmp_path / "again.jsonl"
    with FakeEndpoint(grades({"mute": "no comment", "good": "Grade: 9"})) as server:
        grader.write_text(
            GRADER
            + "\ndef first(prompt, completion, reference):\n    return float(ord(completion[0]))\n"
        )
        members = f"[{judge_card(tmp_path, server)}, 'verifier:{grader}:first']"
        both.write_text(f"kind: ensemble\nmembers: {members}\nstandardize: true\n")
        kept = kill_at_the_end(data, both, output, monkeypatch, "--keep-failed")
        assert not kept.exists()
        server.answers = grades({"mute": "Grade: 2", "good": "Grade: 9"})
        result = aligner(
            "score", "--data", data, "--reward-model", both, "--output", output, "--resume"
        )
        assert result.exit_code == 0, result.output
        assert lines(output) == scored(data, "--reward-model", both)


@pytest.mark.usefixtures("own_cache")
def test_answers_beside_one_without_a_score_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that compares answers scored them without it."""
    pytest.importorskip("openai")
    rows = [{"prompt": "p", "completion": "other"}, *WORDS]
    data, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "again.jsonl"
    with FakeEndpoint(grades({"mute": "no comment"})) as server:
        kept = kill_at_the_end(
            data, judge_card(tmp_path, server), output, monkeypatch, "--keep-failed"
        )
    (line,) = lines(kept)
    assert list(line["result"]) == ["0"]


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_is_broken_inside_is_scored_again(
    tmp_path: Path, grader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(9)), tmp_path / "scored.jsonl"
    kept = kill_at_the_end(data, f"verifier:{grader}:length", output, monkeypatch)
    kept.write_text(kept.read_text().replace('{"value": 6.0}', '{"value": 7.0}'))
    before = len(calls(grader))
    rows = scored(data, "--reward-model", f"verifier:{grader}:length", "--resume")
    assert [row["score"] for row in rows] == list(range(1, 10))
    assert calls(grader)[before:] == ["x" * number for number in range(5, 9)]


def test_parts_of_an_earlier_version_are_refused(tmp_path: Path, grader: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", numbered(3))
    output = tmp_path / "scored.jsonl"
    command = ("score", "--data", data, "--reward-model", f"verifier:{grader}:length")
    part = tmp_path / "scored.jsonl.part"
    part.mkdir()
    (part / "header.json").write_text('{"the data": "", "the reward model": ""}')
    (part / "scores.jsonl").write_text('{"answer": 0, "score": 1.0, "attributes": {}}\n')
    result = aligner(*command, "--output", output, "--resume")
    assert (result.exit_code, "the form of its parts changed" in result.stderr) == (2, True)


def test_an_output_that_another_process_writes_is_not_overwritten(tmp_path: Path) -> None:
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(3)), tmp_path / "scored.jsonl"
    part = tmp_path / "scored.jsonl.part"
    part.mkdir()
    holder = {"pid": 1, "host": "elsewhere", "process_began": ""}
    for name, text in (("header.json", "{}"), ("scores.jsonl", ""), ("lock", json.dumps(holder))):
        (part / name).write_text(text)
    before = {item.name: item.read_text() for item in part.iterdir()}
    result = aligner(
        "score",
        "--data",
        data,
        "--reward-model",
        "verifier:exact",
        "--output",
        output,
        "--overwrite",
    )
    assert (result.exit_code, "is in use by process 1 on elsewhere" in result.stderr) == (2, True)
    assert {item.name: item.read_text() for item in part.iterdir()} == before


def test_overwriting_begins_again_whatever_was_begun_before(
    tmp_path: Path, grader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(3)), tmp_path / "scored.jsonl"
    kill_at_the_end(data, f"verifier:{grader}:length", output, monkeypatch)
    write_jsonl(data, numbered(2))
    assert [
        row["score"]
        for row in scored(data, "--reward-model", f"verifier:{grader}:length", "--overwrite")
    ] == [
        1,
        2,
    ]
    assert len(calls(grader)) == 5


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_scoring_that_was_killed_before_its_header_can_be_gone_on_with(
    tmp_path: Path, grader: Path, option: str
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", numbered(3))
    part = tmp_path / "scored.jsonl.part"
    part.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (part / "lock").write_text(
        json.dumps({"pid": gone.pid, "host": platform.node(), "process_began": "1"})
    )
    (part / f".header.json.{gone.pid}.tmp").write_text('{"da')
    assert len(scored(data, "--reward-model", f"verifier:{grader}:length", option)) == 3


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("change", ["data", "reward model", "sample"])
def test_a_scoring_of_something_else_is_not_gone_on_with(
    tmp_path: Path, grader: Path, change: str
) -> None:
    grader.write_text(GRADER + BREAKS)
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(14)), tmp_path / "scored.jsonl"
    command = [
        "score",
        "--data",
        data,
        "--reward-model",
        f"verifier:{grader}:breaks",
        "--output",
        output,
    ]
    assert aligner(*command).exit_code == 3
    if change == "data":
        write_jsonl(data, [*numbered(13), {"prompt": "p", "completion": "another"}])
    elif change == "reward model":
        command[4] = f"verifier:{grader}:length"
    else:
        command += ["--max-rows", "13"]
    result = aligner(*command, "--resume")
    assert result.exit_code == 2
    assert "changed since" in result.stderr
    assert ("the reward model" if change == "reward model" else "the data") in result.stderr


def test_all_answers_to_a_prompt_are_scored_in_one_call(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number % 3}", "completion": f"{number}"} for number in range(9)]
    found: list[list[str]] = []

    class Spy:
        name, range = "spy", (0.0, 1.0)

        def score(
            self, prompts: list[str], completions: list[str], references: object = None
        ) -> Any:
            from aligner.reward_models.base import Scores

            found.append(prompts)
            return Scores([float(text) for text in completions])

        def fingerprint(self) -> str:
            return "spy"

    from aligner.config.recipe import Source
    from aligner.evaluation.answer_rows import read_answers

    answers = read_answers(Source(path=str(write_jsonl(tmp_path / "rows.jsonl", rows))), 0)
    scores = scoring.score_answers(Spy(), answers, at_once=4)
    assert found == [["p0"] * 3 + ["p1"] * 3, ["p2"] * 3]
    assert [item.value for item in scores] == [float(number) for number in range(9)]
    found.clear()
    scoring.score_answers(Spy(), answers, at_once=None)
    assert len(found) == 1


@pytest.mark.usefixtures("small_parts")
def test_an_ensemble_on_one_scale_gets_all_rows_in_one_call(
    tmp_path: Path, grader: Path, both: Path
) -> None:
    both.write_text(
        f"kind: ensemble\nmembers: ['verifier:{grader}:length', toy]\nstandardize: true\n"
    )
    rows = [
        {"prompt": "sort: ba", "completion": text} for text in ["ab", "a", "b", "x", "abc", "y"]
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    found = [row["score"] for row in scored(data, "--reward-model", both)]
    # lengths 2 1 1 1 3 1: mean 1.5, variance 3.5/6; right 1 0 0 0 0 0: mean 1/6, variance 5/36
    assert found[0] == pytest.approx((0.5 / (3.5 / 6) ** 0.5 + (5 / 6) / (5 / 36) ** 0.5) / 2)
    assert found[4] == pytest.approx((1.5 / (3.5 / 6) ** 0.5 - (1 / 6) / (5 / 36) ** 0.5) / 2)


def judge_card(folder: Path, server: FakeEndpoint, **settings: Any) -> Path:
    endpoint = {
        "model": "m",
        "base_url": server.base_url,
        "max_retries": 0,
        "max_in_flight": 1,
        **settings,
    }
    path = folder / "strict.yaml"
    path.write_text(json.dumps({"kind": "judge", "endpoint": endpoint}))
    return path


def grades(replies: dict[str, str]) -> Any:
    def answer(body: dict[str, Any]) -> Answer:
        text = body["messages"][1]["content"]
        return Answer(
            text=next((reply for word, reply in replies.items() if word in text), "Grade: 5")
        )

    return answer


WORDS = [{"prompt": "q", "completion": word} for word in ("fine", "mute", "good")]


@pytest.mark.usefixtures("own_cache")
def test_a_row_that_a_judge_says_nothing_of_costs_no_other_its_score(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    data, output = write_jsonl(tmp_path / "rows.jsonl", WORDS), tmp_path / "scored.jsonl"
    with FakeEndpoint(grades({"mute": "no comment", "good": "Grade: 9"})) as server:
        command = (
            "score",
            "--data",
            data,
            "--reward-model",
            judge_card(tmp_path, server),
            "--output",
            output,
        )
        result = aligner(*command)
        assert result.exit_code == 3
        assert "no score for 1 of 3 answers" in result.stderr
        assert "rows.jsonl:2: the reply ends in 'no comment'" in result.stderr
        assert len(server.bodies) == 4
        kept = aligner(*command, "--resume", "--keep-failed")
        assert kept.exit_code == 0, kept.output
        assert len(server.bodies) == 6
        assert "without a score: 1" in kept.stdout
        assert "strict: 2 requests" in kept.stdout
        rows = lines(output)
        assert [row["score"] for row in rows] == [5.0, None, 9.0]
        assert rows[1]["error"].startswith("the reply ends in")
        server.answers = grades({"mute": "Grade: 2", "good": "Grade: 9"})
        assert [row["score"] for row in scored(data, *command[3:5], "--overwrite")] == [
            5.0,
            2.0,
            9.0,
        ]
        assert len(server.bodies) == 7


@pytest.mark.usefixtures("own_cache")
def test_a_budget_holds_across_resumes_and_nothing_is_paid_for_twice(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(6)), tmp_path / "scored.jsonl"
    with FakeEndpoint(grades({})) as server:
        card = judge_card(tmp_path, server, budget={"calls": 4})
        command = ("score", "--data", data, "--reward-model", card, "--output", output)
        for arguments in ((), ("--resume",)):
            result = aligner(*command, *arguments)
            assert (result.exit_code, "the budget is spent (calls: 4 of 4)" in result.stderr) == (
                4,
                True,
            )
        judge_card(tmp_path, server, budget={"calls": 6})
        assert aligner(*command, "--resume").exit_code == 0
    assert len(server.bodies) == 6
    assert [row["score"] for row in lines(output)] == [5.0] * 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--resume", "--overwrite", "-o", "out.jsonl"), "starts again"),
        (("--resume",), "there is none"),
        (("-o", "rows.jsonl"), "is the data itself"),
        (("-o", "out.csv"), "name it .jsonl"),
        (("-o", "."), "is a folder"),
        (("-o", "done.jsonl"), "--overwrite replaces it"),
        (("-o", "done.jsonl", "--resume"), "nothing is left to be resumed"),
        (("-o", "odd.jsonl"), "is in the way"),
        (("--reward-model", "toi"), "did you mean 'toy'"),
        (("--reward-model", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_scored(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", numbered(2))
    (tmp_path / "done.jsonl").write_text("{}\n")
    (tmp_path / "odd.jsonl.part").mkdir()
    (tmp_path / "odd.jsonl.part" / "mine.txt").touch()
    os.chdir(tmp_path)
    result = aligner("score", "--data", "rows.jsonl", "--reward-model", "toy", *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert (tmp_path / "done.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completions": []}, "empty one"),
        ({"prompt": "a", "completions": "b"}, "not a list of answers"),
        ({"prompt": "a", "responses": ["b", 3]}, "answer 2 of responses is a number"),
        ({"prompt": "a", "responses": [{"txt": "b"}]}, "answer 1 of responses is null"),
        ({"prompt": "a", "completion": "b", "answer": [1]}, "answer is list"),
        ({"text": "a"}, "rows.jsonl"),
        ({"prompt": "a"}, "completion"),
    ],
)
def test_a_row_that_holds_no_answer_is_named(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [row])
    result = aligner("score", "--data", data, "--reward-model", "verifier:exact")
    assert result.exit_code == 3, result.output
    assert words in result.stderr


def test_a_row_that_its_rule_cannot_judge_is_named_by_file_and_row(tmp_path: Path) -> None:
    rows = [{"prompt": "sort: ba", "completion": "ab"}, {"prompt": "Hello", "completion": "Hi"}]
    result = aligner(
        "score", "--data", write_jsonl(tmp_path / "rows.jsonl", rows), "--reward-model", "toy"
    )
    assert result.exit_code == 3
    assert "rows.jsonl:2: " in result.stderr


@pytest.mark.slow
def test_a_scoring_that_is_killed_goes_on_with_the_same_result(
    tmp_path: Path, grader: Path
) -> None:
    data, output = write_jsonl(tmp_path / "rows.jsonl", numbered(300)), tmp_path / "scored.jsonl"
    arguments = [
        "score",
        "--data",
        data,
        "--reward-model",
        f"verifier:{grader}:slow",
        "--output",
        output,
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "aligner", *map(str, arguments)], stderr=subprocess.DEVNULL
    )
    kept = tmp_path / "scored.jsonl.part" / "scores.jsonl"
    while not (kept.exists() and kept.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not output.exists()
    result = aligner(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    asked = [
        len(text) for text in calls(grader)
    ]  # the call that was running when the kill came may be there twice
    assert [asked.count(number) for number in range(1, 257)] == [1] * 256
    assert set(asked) == set(range(1, 301))
    assert [row["score"] for row in lines(output)] == [float(number) for number in range(1, 301)]
