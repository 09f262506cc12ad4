"""`aligner eval --reward-model`: reward models from the command line, on files of pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes import small_recipe, write_jsonl
from runner import aligner

from aligner.evaluation.rewardbench import ROWS
from aligner.methods.pipeline import run_recipe
from aligner.reward_models.base import Preferences

FUNCTIONS = """
def longer(prompt, completion, reference):
    return len(completion)

def right(prompt, completion, reference):
    return float(completion == reference)

def letters(prompt, completion, reference):
    return float(len(set(completion)))

def flat(prompt, completion, reference):
    return 1
"""
ROWS_OF_PAIRS = [
    {
        "prompt": "sort: cab",
        "chosen": "abc",
        "rejected": "abcx",
        "answer": "abc",
        "kind": "sort",
        "category": "x",
    },
    {
        "prompt": "sort: dab",
        "chosen": "abd",
        "rejected": "b",
        "answer": "abd",
        "kind": "sort",
        "category": None,
    },
    {
        "prompt": "count: cab",
        "chosen": "3",
        "rejected": "4",
        "answer": "3",
        "kind": "count",
        "category": "x",
    },
    {"prompt": "count: cab", "chosen": "3", "rejected": "5", "answer": "3", "kind": None},
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "f.py").write_text(FUNCTIONS)
    write_jsonl(tmp_path / "pairs.jsonl", ROWS_OF_PAIRS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def measured(*arguments: object) -> dict:
    result = aligner("eval", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> tuple[int, str]:
    result = aligner("eval", *arguments)
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def test_one_reward_model_is_measured_on_pairs(here: Path) -> None:
    record = measured(
        "--reward-model", "verifier:f.py:longer", "--data", "pairs.jsonl", "--seed", "3"
    )
    (result,) = record["results"]
    assert record["reward_models"] == ["verifier:f.py:longer"]
    assert (record["category_column"], record["rows_dropped"], record["agreement"]) == (
        "category",
        0,
        None,
    )
    assert record["bootstrap"] == {"resamples": 1000, "seed": 3, "interval": 0.95}
    assert (result["pairs"], result["prompts"], result["ties"]) == (4, 3, 2)
    assert result["accuracy"]["value"] == (0 + 1 + 0.5 + 0.5) / 4
    assert {row["name"]: row["accuracy"]["value"] for row in result["categories"]} == {
        "x": 0.25,
        "(none)": 0.75,
    }
    assert result["fingerprint"]


def test_right_answers_reach_the_scorer_and_the_column_can_be_named(here: Path) -> None:
    record = measured(
        "--reward-model", "verifier:f.py:right", "--data", "pairs.jsonl", "--category", "kind"
    )
    assert record["results"][0]["accuracy"]["value"] == 1.0
    assert [row["name"] for row in record["results"][0]["categories"]] == [
        "sort",
        "count",
        "(none)",
    ]


def test_pairs_that_a_reward_model_was_trained_on_are_no_held_out_result(
    here: Path, small_world: Path
) -> None:
    """Told from the run directory, whatever the file is called now; also of an ensemble's
    member."""
    run_recipe(
        small_recipe("reward", small_world, here / "run", data__train=str(here / "pairs.jsonl"))
    )
    write_jsonl(here / "other.jsonl", ROWS_OF_PAIRS[:3])
    (here / "pairs.jsonl").rename(here / "renamed.jsonl")
    (here / "both.yaml").write_text("kind: ensemble\nmembers: [./run, toy]\n")
    for card in ("run", "run/final", "both.yaml"):
        result = aligner("eval", "--reward-model", card, "--data", "renamed.jsonl", "--json")
        assert (
            f"warning: {card} was trained on {here}/pairs.jsonl: what follows is no held-out result"
            in result.stderr
        )
        assert json.loads(result.stdout)["results"][0]["trained_on"] == [f"{here}/pairs.jsonl"]
        result = aligner("eval", "--reward-model", card, "--data", "other.jsonl", "--json")
        assert "warning" not in result.stderr
        assert json.loads(result.stdout)["results"][0]["trained_on"] == []


def test_columns_can_be_mapped(here: Path) -> None:
    row = {
        "question": "sort: ba",
        "good": "ab",
        "bad": "ba",
        "meta": {"task": "t"},
        "solution": "ab",
    }
    write_jsonl(
        here / "odd.jsonl", [row, {**row, "question": "sort: dc", "good": "cd", "solution": "cd"}]
    )
    columns = [
        "prompt=question",
        "chosen=good",
        "rejected=bad",
        "category=meta.task",
        "answer=solution",
    ]
    flags = [part for column in columns for part in ("--column", column)]
    record = measured("--reward-model", "verifier:exact", "--data", "odd.jsonl", *flags)
    assert record["results"][0]["accuracy"]["value"] == 1.0
    assert [row["name"] for row in record["results"][0]["categories"]] == ["t"]


def test_two_reward_models_are_compared(here: Path) -> None:
    record = measured(
        "--reward-model", "toy", "--reward-model", "verifier:f.py:longer", "--data", "pairs.jsonl"
    )
    assert [result["accuracy"]["value"] for result in record["results"]] == [1.0, 0.5]
    found = record["agreement"]
    assert found["same_choice"]["value"] == 0.25
    assert found["accuracy_difference"]["value"] == 0.5
    assert (found["both_right"], found["only_first_right"]) == (1, 3)
    # one group of pairs has both verdicts, and 3 prompts have 8 exchanges
    assert found["tested"]["p_value"] in (2 / 8, 4 / 8)
    compared = measured(
        "--reward-model", "toy", "--compare", "verifier:f.py:longer", "--data", "pairs.jsonl"
    )
    assert compared["agreement"] == found
    text = aligner(
        *("eval", "--reward-model", "toy", "--compare", "verifier:f.py:longer"),
        *("--data", "pairs.jsonl"),
    ).stdout
    assert "accuracy: no difference is shown (p = " in text


def test_the_tables_hold_every_part(here: Path) -> None:
    arguments = (
        "--reward-model",
        "toy",
        "--reward-model",
        "verifier:f.py:longer",
        "--data",
        "pairs.jsonl",
    )
    result = aligner("eval", *arguments)
    assert result.exit_code == 0, result.output
    for words in (
        "toy  (pointwise)",
        "4 pairs of 3 prompts",
        "accuracy without ties",
        "calibration error (ECE)",
        "accuracy, chosen answer shorter",
        "score and length, centred (Pearson)",
        "category",
        "sure",
        "same choice",
        "Cohen's kappa",
        "both right",
    ):
        assert words in result.stdout, words
    assert "judging with toy" in result.stderr


def test_numbers_and_picture_go_to_files(here: Path) -> None:
    arguments = (
        "--reward-model",
        "verifier:f.py:longer",
        "--reward-model",
        "toy",
        "--data",
        "pairs.jsonl",
    )
    assert (
        aligner("eval", *arguments, "--output", "new/x.json", "--plot", "more/x.html").exit_code
        == 0
    )
    assert (
        json.loads((here / "new" / "x.json").read_text("utf-8"))["results"][1]["reward_model"]
        == "toy"
    )
    page = (here / "more" / "x.html").read_text("utf-8")
    for words in (
        "Accuracy by length",
        "Accuracy by category",
        "Calibration",
        "Score by length",
        "Agreement",
    ):
        assert words in page
    assert "https://" not in page


def test_what_rows_say_stays_text_in_the_picture(here: Path) -> None:
    attack = "</p><script>alert(1)</script>\"'"
    rows = [{**row, "category": attack} for row in ROWS_OF_PAIRS]
    write_jsonl(here / "pairs.jsonl", rows)
    assert (
        aligner(
            "eval", "--reward-model", "toy", "--data", "pairs.jsonl", "--plot", "x.html"
        ).exit_code
        == 0
    )
    page = (here / "x.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_a_comparer_gets_its_order_flips_and_no_correlation(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judge:
        name, range = "judge", (0.0, 1.0)

        def score(self, prompts, completions, references=None):
            raise AssertionError("not asked for scores")

        def prefer(self, prompts, first, second):
            remarks = {0: "cut by 3 tokens"}
            return Preferences([0.9, 0.5, 0.2, 0.6][: len(first)], flips=[1], remarks=remarks)

        def fingerprint(self):
            return "judge"

    monkeypatch.setattr("aligner.reward_models.catalogue.load_scorer", lambda spec, **_: Judge())
    arguments = ("--reward-model", "toy", "--data", "pairs.jsonl", "--plot", "x.html")
    result = aligner("eval", *arguments)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if "changes its mind" in line)
    assert line.split()[-2:] == ["0.25", "4"]
    assert "gives no scores" in result.stdout
    assert "pairs.jsonl:1: cut by 3 tokens" in result.stdout
    assert "Choice by length" in (here / "x.html").read_text("utf-8")


def test_an_ensemble_on_one_scale_is_scored_in_one_call(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.evaluation.pair_scores.AT_ONCE", 1)
    card = (
        "kind: ensemble\nmembers: ['verifier:f.py:longer', 'verifier:f.py:letters']\nstandardize: "
        "true\n"
    )
    (here / "e.yaml").write_text(card)
    result = aligner(
        "eval",
        "--reward-model",
        "e.yaml",
        "--reward-model",
        "toy",
        "--data",
        "pairs.jsonl",
        "--json",
    )
    assert result.exit_code == 0, result.output
    # In several calls it is refused: the answers to one prompt all have one length, and no spread.
    # By hand: lengths 3, 4, 3, 1, 1, 1, 1 and letters the same, so the margins are those of twice
    # the length.
    assert json.loads(result.stdout)["results"][0]["accuracy"]["value"] == 0.5


def test_rewardbench_is_recognised_and_a_sample_of_it_is_not(here: Path) -> None:
    rows = [
        {"prompt": f"p{number}", "chosen": "abc", "rejected": "ab", "subset": subset, "id": number}
        for number, subset in enumerate(
            subset for subset, count in ROWS.items() for _ in range(count)
        )
    ]
    write_jsonl(here / "bench.jsonl", rows)
    arguments = (
        "--reward-model",
        "verifier:f.py:longer",
        "--data",
        "bench.jsonl",
        "--resamples",
        "5",
    )
    lines = aligner("eval", *arguments).stdout.splitlines()
    assert any(re.match(r"RewardBench +1 +1 to 1 \(\+/- 0\) +2,985$", line) for line in lines)
    assert any(line.startswith("RewardBench, Chat Hard ") for line in lines)
    sample = aligner("eval", *arguments, "--max-rows", "2000").stdout
    assert "Left out. RewardBench's average: the rows are not the benchmark's." in sample
    assert not any(line.startswith("RewardBench") for line in sample.splitlines())


def test_ties_alone_and_a_single_pair_are_measured(here: Path) -> None:
    record = measured("--reward-model", "verifier:f.py:flat", "--data", "pairs.jsonl")["results"][0]
    assert (record["accuracy"]["value"], record["ties"]) == (0.5, 4)
    assert record["accuracy_without_ties"]["value"] is None
    write_jsonl(here / "one.jsonl", ROWS_OF_PAIRS[:1])
    result = aligner("eval", "--reward-model", "toy", "--data", "one.jsonl", "--plot", "one.html")
    assert result.exit_code == 0, result.output
    assert "all pairs are of one prompt" in result.stdout


def test_broken_rows_stop_it_or_are_counted(here: Path) -> None:
    broken = [*ROWS_OF_PAIRS, {"prompt": "p", "chosen": "same", "rejected": "same"}]
    write_jsonl(here / "pairs.jsonl", broken)
    arguments = ("--reward-model", "toy", "--data", "pairs.jsonl")
    code, said = refused(*arguments)
    assert (code, "pairs.jsonl:5" in said) == (3, True)
    result = aligner("eval", *arguments, "--on-bad-row", "drop", "--json")
    assert json.loads(result.stdout)["rows_dropped"] == 1
    assert (
        "1 broken row is left out, the first pairs.jsonl:5: chosen and rejected are the same"
        in result.stderr
    )


def test_many_categories_are_listed_in_the_json_and_not_on_the_screen(here: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "chosen": "abc", "rejected": "ab", "source": f"s{n}"}
        for n in range(300)
    ]
    write_jsonl(here / "pairs.jsonl", rows)
    arguments = (
        "--reward-model",
        "verifier:f.py:longer",
        "--data",
        "pairs.jsonl",
        "--resamples",
        "3",
    )
    assert "and 260 more, which --json and --output list" in aligner("eval", *arguments).stdout
    assert len(measured(*arguments)["results"][0]["categories"]) == 300


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "nothing to measure"),
        (["model", "--reward-model", "toy"], 2, "both MODEL and --reward-model"),
        (["--reward-model", "toy"] + ["--reward-model", "verifier:exact"] * 2, 2, "given 3 times"),
        (["--reward-model", "toyy"], 2, "did you mean 'toy'"),
        (["--reward-model", "toy", "--reward-model", "nowhere"], 2, "there is no scorer 'nowhere'"),
        (["--reward-model", "toy", "--task", "sft"], 2, "--task has no effect for reward models"),
        (
            ["--reward-model", "toy", "-n", "2", "--dtype", "auto"],
            2,
            "--num-samples, --dtype have no effect",
        ),
        (["model", "--plot", "x.html"], 2, "--plot has no effect for models"),
        (
            ["model", "--category", "kind", "--plot", "x.html"],
            2,
            "--category, --plot have no effect",
        ),
        (["--reward-model", "toy", "--category", "topic"], 3, "has the column `topic`"),
        (["--reward-model", "toy", "--plot", "."], 2, ". is a folder"),
        (["--reward-model", "toy", "--resamples", "-1"], 2, "resamples"),
        (["--reward-model", "verifier:f.py:nothing"], 2, "nothing"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_scored(
    here: Path, arguments: list[str], code: int, words: str
) -> None:
    found, said = refused(*arguments, "--data", "pairs.jsonl")
    assert (found, words in said) == (code, True), said
    assert "judging" not in said


def test_rows_that_a_scorer_refuses_are_named(here: Path) -> None:
    write_jsonl(
        here / "pairs.jsonl",
        [*ROWS_OF_PAIRS, {"prompt": "no task", "chosen": "a", "rejected": "b"}],
    )
    code, said = refused("--reward-model", "toy", "--data", "pairs.jsonl")
    assert code == 3
    assert "pairs.jsonl:5" in said
    write_jsonl(here / "empty.jsonl", [])
    assert refused("--reward-model", "toy", "--data", "empty.jsonl")[0] == 3
    write_jsonl(here / "plain.jsonl", [{"prompt": "a", "completion": "b"}])
    assert refused("--reward-model", "toy", "--data", "plain.jsonl")[0] == 3


def lists(here: Path) -> None:
    """Rows with lists of answers, in `lists.jsonl`: the longest is right in two of three, and one
    number of Ties."""
    rows = [
        {"id": str(number), "prompt": f"p{number}", "chosen": [text], "subset": "Focus"}
        for number, text in enumerate(("aaaa", "bbbb", "c"))
    ]
    rows = [{**row, "rejected": ["xx", "yy", "zz"]} for row in rows]
    rows += [
        {"id": "ref:0", "prompt": "name a colour", "chosen": ["green"], "rejected": ["dog"]},
        {"id": "tied:0", "prompt": "and any", "chosen": ["green", "white"], "rejected": ["dog"]},
    ]
    write_jsonl(here / "lists.jsonl", [{"subset": "Ties", **row} for row in rows])


def test_two_reward_models_are_compared_by_the_best_of_lists(here: Path) -> None:
    lists(here)
    arguments = ("--reward-model", "verifier:f.py:longer", "--data", "lists.jsonl")
    record = measured(*arguments, "--compare", "verifier:f.py:longer")
    found = record["compared"]["accuracy"]
    assert (found["difference"], found["p_value"], found["equal"]) == (0.0, 1.0, found["groups"])
    text = aligner("eval", *arguments, "--compare", "verifier:f.py:longer").stdout
    assert "accuracy: no difference is shown (p = 1)" in text
    assert measured(*arguments)["compared"] is None


def test_rows_with_lists_of_answers_are_measured_by_the_best(here: Path) -> None:
    lists(here)
    arguments = ("--reward-model", "verifier:f.py:longer", "--data", "lists.jsonl")
    result = aligner("eval", *arguments, "--output", "best.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any(re.match(r"best answer is right +0.6667 ", line) for line in lines)
    assert any(re.match(r"Ties +1.01 ", line) for line in lines)
    assert any(re.match(r"Ties, gap above spread +1 ", line) for line in lines)
    assert "Left out. RewardBench 2's score: the rows are not the benchmark's." in result.stdout
    record = json.loads((here / "best.json").read_text())["results"][0]
    assert record["kind"] == "best_of"
    assert record["ties"]["score"]["value"] == pytest.approx(1.01)
    assert record["subsets"][0]["items"] == 3


def test_two_reward_models_are_measured_on_lists(here: Path) -> None:
    lists(here)
    pair = ("--reward-model", "verifier:f.py:longer", "--reward-model", "verifier:f.py:flat")
    record = json.loads(aligner("eval", *pair, "--data", "lists.jsonl", "--json").stdout)
    values = [result["accuracy"]["value"] for result in record["results"]]
    assert values == [pytest.approx(2 / 3), 0.25]


def test_a_picture_of_lists_is_refused(here: Path) -> None:
    lists(here)
    result = aligner("eval", "--reward-model", "toy", "--data", "lists.jsonl", "--plot", "x.html")
    assert result.exit_code == 2
    assert "--plot draws pairs" in result.output
