"""`aligner arena` as it is typed: tables, files, JSON, and what is said of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fakes import write_jsonl
from runner import aligner
from simulated_arena import simulate

RATE = ("arena", "rate")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Votes of three models in `votes.jsonl`."""
    monkeypatch.chdir(tmp_path)
    votes = simulate((-0.8, 0.0, 0.8), 30, seat=0.3, tie_below=0.1)
    names = {1.0: "model_a", 0.0: "model_b", 0.5: "tie"}
    write_jsonl(
        tmp_path / "votes.jsonl",
        (
            {
                "model_a": votes.models[votes.a[row]],
                "model_b": votes.models[votes.b[row]],
                "winner": names[float(votes.outcome[row])],
                "prompt_id": votes.prompts[votes.prompt[row]],
                "topic": votes.categories[votes.category[row]],
                "len_a": int(votes.style_a[row, 0]),
                "len_b": int(votes.style_b[row, 0]),
            }
            for row in range(len(votes))
        ),
    )
    return tmp_path


def test_a_picture_as_png_is_written_where_it_is_asked_for(folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    command = (*RATE, "votes.jsonl", "--resamples", 20, "--output", "out")
    done = aligner(*command, "--png")
    assert done.exit_code == 0, done.output
    assert "leaderboard.png" in done.output
    assert (folder / "out" / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    Path("out/leaderboard.csv").unlink()
    assert aligner(*RATE, "votes.jsonl", "--output", "out").exit_code == 2


def test_a_picture_as_png_needs_matplotlib_and_an_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = aligner(*RATE, "votes.jsonl", "--png")
    assert (alone.exit_code, "add --output DIR" in alone.output) == (2, True)
    monkeypatch.setattr("aligner.arena.png.find_spec", lambda name: None)
    done = aligner(*RATE, "votes.jsonl", "--output", "out", "--png")
    assert done.exit_code == 2
    assert "pip install 'aligner-toolkit[plots]'" in " ".join(done.output.split())
    assert not Path("out").exists()


def test_the_group_names_its_commands() -> None:
    printed = aligner("arena", "--help").output
    assert "rate         Rate models from battles: Bradley-Terry" in printed
    assert "consistency  Compare ratings with those of a reference arena." in printed


def test_ratings_are_a_table_with_the_best_first(folder: Path) -> None:
    done = aligner(*RATE, "votes.jsonl", "--resamples", 50)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["rank", "ranks", "model", "rating"]
    assert [line.split()[2] for line in lines[1:4]] == ["m2", "m1", "m0"]
    assert "/" in lines[1]


def test_controls_baseline_and_categories_have_tables_of_their_own(folder: Path) -> None:
    more = ("--control", "seat", "--control", "length", "--baseline", "m1", "--category", "topic")
    done = aligner(*RATE, "votes.jsonl", *more, "--resamples", 20, "--ties", "davidson")
    assert done.exit_code == 0, done.output
    for words in ("uncontrolled", "coefficient (logits)", "against the baseline", "even ", "odd "):
        assert words in done.stdout
    coefficients = done.stdout.split("coefficient (logits)")[1].splitlines()[1:4]
    assert [line.split()[0] for line in coefficients] == ["seat", "length", "ties"]


def test_a_rating_that_is_a_bound_says_so_in_its_category_too(folder: Path) -> None:
    common = {"model_a": "x", "model_b": "y"}
    rows = [{**common, "prompt_id": n, "winner": "x", "category": "one"} for n in range(3)]
    rows += [{**common, "prompt_id": 9, "winner": w, "category": "two"} for w in ("x", "y", "tie")]
    write_jsonl(folder / "won.jsonl", rows)
    more = ("--category", "category", "--resamples", 5, "-o", "out")
    done = aligner(*RATE, "won.jsonl", *more)
    one, two = re.split(r"\n(?:one|two) +rating", done.stdout)[1:]
    assert [line.split()[:2] for line in one.splitlines()[1:3]] == [["x", ">="], ["y", "<="]]
    assert "=" not in two.split("wrote")[0]
    assert '<td class="n">&gt;= 1,' in (folder / "out" / "leaderboard.html").read_text()


def test_judgments_of_arena_hard_are_rated_without_their_answers(folder: Path) -> None:
    verdicts = ("A>>B", "B>A", "A=B", "B>>A")
    games = [[{"score": one}, {"score": other}] for one in verdicts for other in verdicts]
    rows = [{"uid": f"q{n}", "model": "m", "judge": "j", "games": g} for n, g in enumerate(games)]
    write_jsonl(folder / "j.jsonl", rows)
    more = ("--baseline", "gpt-4-0314", "--strong", 3, "--merge", "votes", "--resamples", 20)
    done = aligner(*RATE, "j.jsonl", *more)
    assert done.exit_code == 0, done.output
    assert "m: some answers have no length" in done.output
    line = done.stdout.split("against the baseline")[1].splitlines()[1].split()
    assert line[:2] == ["m", "50.0%"]
    assert line[-2:] == ["-", "-"]


def test_json_holds_everything_and_files_are_written_once(folder: Path) -> None:
    done = aligner(*RATE, "votes.jsonl", "--resamples", 20, "--json", "-o", "out")
    record = json.loads(done.stdout)
    assert record["votes"] == 180
    assert record["settings"]["unit"] == "prompt"
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "leaderboard.csv",
        "leaderboard.html",
        "leaderboard.json",
        "leaderboard.svg",
    ]
    again = aligner(*RATE, "votes.jsonl", "-o", "out")
    assert again.exit_code == 2
    assert "out holds leaderboard.csv already" in again.output
    assert aligner(*RATE, "votes.jsonl", "-o", "out", "--overwrite").exit_code == 0


def test_the_same_seed_prints_the_same(folder: Path) -> None:
    first = aligner(*RATE, "votes.jsonl", "--resamples", 30, "--seed", 3).stdout
    assert aligner(*RATE, "votes.jsonl", "--resamples", 30, "--seed", 3).stdout == first
    assert aligner(*RATE, "votes.jsonl", "--resamples", 30, "--seed", 4).stdout != first


def test_ratings_are_compared_with_a_reference(folder: Path) -> None:
    aligner(*RATE, "votes.jsonl", "--resamples", 50, "-o", "out")
    (folder / "ref.csv").write_text(
        "model,rating,low,high\nm0,900,890,910\nm1,1000,990,1010\nm2,1100,1090,1110\nz,1,1,1\n"
    )
    compare = ("arena", "consistency", "out/leaderboard.json", "--reference", "ref.csv")
    done = aligner(*compare)
    assert done.exit_code == 0, done.output
    assert "spearman         1.0000" in done.stdout
    assert "3 models, 3 pairs" in done.stdout
    assert "warning: not in the ratings: z" in done.stderr
    record = json.loads(aligner(*compare, "--json").stdout)
    assert record["agreement"] == 1.0
    assert 0 <= record["brier"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none.jsonl",), 3, "none.jsonl is not a file"),
        (("votes.jsonl", "--anchor", "q"), 3, "the anchor 'q' has no vote"),
        (("votes.jsonl", "--baseline", "q"), 3, "the baseline 'q' has no vote"),
        (("votes.jsonl", "--model", "q"), 2, "--model q has no vote"),
        (("votes.jsonl", "--model", "m0"), 3, "no vote is left to rate"),
        (("votes.jsonl", "--control", "taste"), 2, "--control taste is not known"),
        (("votes.jsonl", "--control", "style", "--resamples", "0"), 3, "lack the headers"),
        (("votes.jsonl", "--length-rule", "500"), 3, "some verdicts have no grade"),
        (("votes.jsonl", "--category", "mood"), 3, "no row has the column mood"),
        (("votes.jsonl", "--strong", "3"), 2, "no verdict says much better"),
        (("votes.jsonl", "--overwrite"), 2, "there is none"),
        (("votes.jsonl", "--form", "games"), 3, "votes.jsonl:1: model_first: is missing"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = aligner(*RATE, *arguments)
    assert done.exit_code == code, done.output
    assert said in done.output


def test_graded_verdicts_have_rewards_weights_and_a_length_rule(folder: Path) -> None:
    common = {"model_a": "x", "model_b": "y", "len_a": 900, "len_b": 100}
    rows = [{**common, "prompt_id": n, "winner": w} for n, w in enumerate(("A>>B", "A>B", "B>A"))]
    write_jsonl(folder / "graded.jsonl", rows)
    plain = json.loads(aligner(*RATE, "graded.jsonl", "--resamples", 0, "--json").stdout)
    assert plain["rewards"]["x"]["mean"] == pytest.approx(100 / 3)
    assert plain["models"][0]["win_rate"] == pytest.approx(2 / 3)
    strong = aligner(*RATE, "graded.jsonl", "--resamples", 0, "--json", "--strong", 3)
    assert json.loads(strong.stdout)["models"][0]["win_rate"] == pytest.approx(4 / 5)
    ruled = aligner(*RATE, "graded.jsonl", "--resamples", 0, "--json", "--length-rule", 500)
    assert json.loads(ruled.stdout)["models"][0]["ties"] == 1


def test_rows_that_cannot_be_used_are_listed_with_their_places(folder: Path) -> None:
    (folder / "bad.csv").write_text("model_a,model_b,winner\nx,y,x\nx,y,w\nx,x,x\n")
    done = aligner(*RATE, "bad.csv")
    assert done.exit_code == 3
    assert "bad.csv:2: winner: 'w' is neither 'x' nor 'y'" in done.output
    assert "bad.csv:3: model_b: 'x' meets itself" in done.output


def test_names_cannot_steer_the_terminal(folder: Path) -> None:
    rows = [{"model_a": "x\x1b[2J", "model_b": "y", "winner": w} for w in ("model_a", "model_b")]
    write_jsonl(folder / "odd.jsonl", rows)
    done = aligner(*RATE, "odd.jsonl", "--resamples", 5)
    assert "\x1b" not in done.output
    assert "x\\x1b[2J" in done.output
