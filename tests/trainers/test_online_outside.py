"""Rounds and what is outside of them: scorers, servers, processes, disks, other drivers, bad
input."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Continues, FakeEndpoint
from fakes import small_recipe, write_jsonl, write_rounds_world
from safetensors.torch import load_file

from aligner.config.recipe import Model
from aligner.errors import DataError, RecipeError, TrainingError, UsageError
from aligner.events import Event, StageProgress
from aligner.methods.online import answering, preflight
from aligner.methods.online.rounds import run_online
from aligner.methods.online.scoring import Scoring
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.base import NoVerdict, Scores
from aligner.runs.journal import Journal
from aligner.runs.result import RunResult


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_rounds_world(tmp_path_factory.mktemp("rounds"), toy_world)
    (folder / "letters.py").write_text(
        "def early(prompt, response, answer=None):\n"
        "    return sum(response.count(letter) for letter in 'abcd') - 0.1 * len(response)\n"
    )
    return folder


def run(world: Path, folder: Path, *overrides: str, **options: Any) -> RunResult:
    """One round, unless it is said otherwise."""
    flags = {"online__rounds": 1, **options.pop("flags", {})}
    return run_online(small_recipe("online", world, folder, *overrides, **flags), **options)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- scorers --------------------------------------------------------------------------------------


def by_letters(world: Path) -> str:
    return f"online.reward_models=[verifier:{world}/letters.py:early]"


def test_scores_beside_the_sampling_are_those_after_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[str] = []
    score = Scoring.score

    def spy(self: Any, number: int, scorer: Any, part: int) -> None:
        if self.stage.name.endswith("score"):
            where.append(threading.current_thread().name)
        score(self, number, scorer, part)

    monkeypatch.setattr(Scoring, "score", spy)
    told: list[Event] = []
    run(world, tmp_path / "beside", by_letters(world), on_event=told.append)
    assert len(where) == 3
    assert all(name != "MainThread" for name in where)
    where.clear()
    monkeypatch.setattr(answering, "BESIDE", ())
    run(world, tmp_path / "after", by_letters(world))
    assert where == ["MainThread"] * 3
    for name in ("score/scores-0.jsonl", "pair/pairs.jsonl"):
        files = [tmp_path / side / "rounds/01" / name for side in ("beside", "after")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert any(isinstance(event, StageProgress) for event in told)


@pytest.mark.slow
def test_a_scorer_that_fails_beside_the_sampling_ends_it_and_nothing_is_lost(
    world: Path, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run(world, whole, by_letters(world))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scoring, "_asked", failing)
        with pytest.raises(DataError, match="the judge is gone"):
            run(world, folder, by_letters(world))
    run(world, folder, by_letters(world), resume=True)
    name = "rounds/01/pair/pairs.jsonl"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def failing(*_: Any) -> Any:
    raise DataError("the judge is gone", "bring it back")


class Silent:
    """A scorer with no verdict on some responses."""

    name, range = "silent", (-1e9, 1e9)

    def __init__(self, speaks: Callable[[str], bool]) -> None:
        self.speaks = speaks

    def score(self, prompts: Any, completions: Sequence[str], references: Any = None) -> Scores:
        silent = {row: "?" for row, text in enumerate(completions) if not self.speaks(text)}
        if silent:
            error = NoVerdict("no verdict")
            error.rows = silent
            raise error
        return Scores([float(len(text)) for text in completions])

    def fingerprint(self) -> str:
        return "silent"


def test_a_scorer_that_says_nothing_ends_the_round_and_another_one_resumes_it(
    world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        say_nothing(patch, lambda text: False)
        with pytest.raises(TrainingError, match="48 responses without a score") as caught:
            run(world, folder, "online.evaluation.gold=toy")
    assert "--resume" in caught.value.hint
    sampled = (folder / "rounds/01/sample/responses.jsonl").stat().st_mtime_ns
    run(world, folder, by_letters(world), "online.evaluation.gold=toy", resume=True)
    assert (folder / "rounds/01/sample/responses.jsonl").stat().st_mtime_ns == sampled


def test_responses_without_a_score_are_left_out_and_counted(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        say_nothing(patch, lambda text: len(text) % 3 > 0)
        run(world, folder)
    said = Journal(folder / "rounds/01/score/scores-0.jsonl")
    scores = [score for part in range(3) for row in said[part][1] for score in row]
    silent = scores.count(None)
    assert 0 < silent < len(scores) == 48
    facts = json.loads((folder / "rounds/01/pair/done.json").read_text())["facts"]
    assert facts["lost"]["responses without a score"] == silent
    for row in lines(folder / "rounds/01/pair/pairs.jsonl"):
        assert all(len(row[side][0]["content"]) % 3 for side in ("chosen", "rejected"))


def say_nothing(patch: pytest.MonkeyPatch, speaks: Callable[[str], bool]) -> None:
    patch.setattr(answering, "load_scorer", lambda _: Silent(speaks))


@pytest.mark.slow
def test_several_scorers_count_by_their_weights(world: Path, tmp_path: Path) -> None:
    """A weight that changes makes pairs again, and no score."""
    folder = tmp_path / "run"
    both = f"online.reward_models=[toy,verifier:{world}/letters.py:early]"
    run(world, folder, both, "online.reward_weights=[1.0,3.0]")
    made = [Journal(folder / f"rounds/01/score/scores-{number}.jsonl") for number in (0, 1)]
    known = {}
    responses = Journal(folder / "rounds/01/sample/responses.jsonl")
    for part in range(3):
        for samples, first, second in zip(responses[part], made[0][part][1], made[1][part][1]):
            for one, a, b in zip(samples, first, second):
                known[tuple(one[0])] = (a + 3 * b) / 4
    rows = lines(folder / "rounds/01/pair/pairs.jsonl")
    for row in rows:
        assert row["scores"] == [pytest.approx(known[tuple(ids)]) for ids in row["pair_token_ids"]]
    before = (folder / "rounds/01/score/done.json").stat().st_mtime_ns
    run(world, folder, both, "online.reward_weights=[1.0,0.5]", resume=True)
    assert (folder / "rounds/01/score/done.json").stat().st_mtime_ns == before
    assert lines(folder / "rounds/01/pair/pairs.jsonl") != rows


# --- bad input ------------------------------------------------------------------------------------


def test_a_scorer_that_is_not_there_is_refused_first(world: Path, tmp_path: Path) -> None:
    for key in ("online.reward_models=[runs/nowhere]", "online.evaluation.gold=runs/nowhere"):
        with pytest.raises((UsageError, RecipeError, DataError), match="nowhere"):
            run(world, tmp_path / "run", key)
    assert not (tmp_path / "run").exists()


def test_too_few_prompts_are_refused_first(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rounds of 100 prompts need 200 different ones"):
        run(world, tmp_path / "run", "online.prompts_per_round=100", flags={"online__rounds": 2})
    assert not (tmp_path / "run").exists()


def test_prompts_that_come_twice_or_are_held_out_are_left_out(world: Path, tmp_path: Path) -> None:
    """By what they ask, whatever row they are; and no prompt comes again in another round."""
    rows = lines(world / "prompts.jsonl")
    data = write_jsonl(tmp_path / "data.jsonl", [*rows, *rows[:7]])
    held = write_jsonl(tmp_path / "held.jsonl", rows[:5])
    flags = {"online__rounds": 2}
    recipe = small_recipe(
        "online", world, tmp_path / "run", f"data.train={data}", f"data.eval={held}", **flags
    ).recipe
    inputs = preflight.read_inputs(recipe, None)  # type: ignore[arg-type]
    assert inputs.left_out == {"held out too": 10, "come twice": 2}
    asked = [json.dumps(row.prompt) for part in inputs.rounds for row in part]
    assert len(asked) == len(set(asked)) == 24
    assert not set(asked) & {json.dumps(row.prompt) for row in inputs.held_out}


def test_the_first_rounds_prompts_stay_where_rounds_are_added(world: Path, tmp_path: Path) -> None:
    found = []
    for rounds in (1, 2):
        recipe = small_recipe("online", world, tmp_path, online__rounds=rounds).recipe
        found.append(preflight.read_inputs(recipe, None).rounds[0])  # type: ignore[arg-type]
    assert found[0] == found[1]


@pytest.mark.slow
def test_prompts_without_room_for_a_response_are_left_out_and_counted(
    world: Path, tmp_path: Path
) -> None:
    rows = lines(world / "prompts.jsonl")
    rows[3] = {"prompt": [{"role": "user", "content": "sort: " + "abc" * 40}]}
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    told: list[Any] = []
    folder = tmp_path / "run"
    run(
        world,
        folder,
        f"data.train={data}",
        "data.max_length=64",
        "online.prompts_per_round=32",
        on_event=told.append,
    )
    facts = json.loads((folder / "rounds/01/sample/done.json").read_text())["facts"]
    asked = facts["prompts too long to be answered"]
    assert facts["responses"] == 4 * (32 - asked)
    if asked:
        assert any("leave no room for a response" in str(event) for event in told)


def test_a_full_disk_is_refused_first_and_what_is_there_counts(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(preflight.shutil, "disk_usage", lambda _: Full)
        with pytest.raises(UsageError, match=r"the rounds write about .* MB, and 0\.0 MB are free"):
            run(world, folder)
        assert not folder.exists()
        run(world, folder, dry_run=True)
    run(world, folder)
    recipe = small_recipe("online", world, folder, online__rounds=1).recipe
    inputs = preflight.read_inputs(recipe, None)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "bytes_needed", lambda *_: 1)
        patch.setattr(preflight.shutil, "disk_usage", lambda _: Full)
        preflight.refuse_full_disk(recipe, inputs, folder)  # type: ignore[arg-type]


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from fakes import small_recipe
from pathlib import Path
from aligner.runs.run import Run
run = Run.create(small_recipe("online", Path(sys.argv[2]), Path(sys.argv[3]), online__rounds=1))
print("ready", flush=True)
time.sleep(600)
"""


def test_a_second_driver_is_refused(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        HOLDER,
        str(Path(__file__).parents[1]),
        str(world),
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match=f"process {process.pid}"):
                run(world, folder, **options)
        assert not (folder / "rounds").exists()
    finally:
        process.kill()
        process.wait()
    run(world, folder, resume=True)


# --- engines and processes ------------------------------------------------------------------------


class Served:
    """A server that answers with the model whose folder `online.serve` wrote into a file."""

    def __init__(self, file: Path, world: Path) -> None:
        self.file, self.world = file, world
        self.known: dict[str, Continues] = {}

    def __call__(self, body: dict[str, Any]) -> Any:
        place = self.file.read_text().split()[-1]
        if place not in self.known:
            section = Model(name_or_path=place)
            tokenizer = load_tokenizer(section)
            model = load_policy(section, tokenizer, trainable=False)
            self.known[place] = Continues(model, tokenizer)
        return self.known[place](body)


def served(world: Path, folder: Path, served_file: Path, command: str) -> tuple[str, ...]:
    return (
        "generation.engine=endpoint",
        f"online.serve={command} {{round}} {{model}} >> {served_file}",
        "online.shard_size=32",
    )


def test_a_server_serves_each_policy_before_it_is_sampled_from(world: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "served", tmp_path / "run"
    flags = {"online__rounds": 2}
    with FakeEndpoint(Served(file, world)) as server:
        settings = served(world, folder, file, "echo")
        address = f"generation.endpoint.base_url={server.base_url}"
        run(world, folder, *settings, address, flags=flags)
        said = [line.split() for line in file.read_text().splitlines()]
        assert [number for number, _ in said] == ["0", "1", "2"], "each once"
        assert said[0][1] == str(world / "model")
        assert said[1][1] == str(folder / "rounds/01/train/run/final")
        asked = len(server.bodies)
        run(world, folder, *settings, address, flags=flags, resume=True)
        assert len(server.bodies) == asked
    for row in lines(folder / "rounds/02/pair/pairs.jsonl"):
        assert all(row["pair_token_ids"])


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why_and_the_run_resumes(
    world: Path, tmp_path: Path
) -> None:
    file, folder = tmp_path / "served", tmp_path / "run"
    with FakeEndpoint(Served(file, world)) as server:
        address = f"generation.endpoint.base_url={server.base_url}"
        broken = served(world, folder, file, "echo no GPU is free >&2; exit 3;")
        with pytest.raises(UsageError, match=r"ended with 3(.|\n)*no GPU is free"):
            run(world, folder, *broken, address)
        run(world, folder, *served(world, folder, file, "echo"), address, resume=True)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(world: Path, tmp_path: Path) -> None:
    recipe = small_recipe("online", world, tmp_path / "one")
    run_online(recipe)
    given = [
        f"{key}={json.dumps(value) if isinstance(value, list) else value}"
        for key, value in flat_settings(world, tmp_path / "two").items()
    ]
    command = [sys.executable, "-m", "aligner", "online", *given, "launch.num_processes=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    files = [tmp_path / side / "rounds/01" for side in ("one", "two")]
    pairs = [(file / "pair/pairs.jsonl").read_bytes() for file in files]
    assert pairs[0] == pairs[1]
    ours, theirs = (load_file(file / "train/run/final/model.safetensors") for file in files)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    later = [(tmp_path / side / "rounds/02/pair/pairs.jsonl") for side in ("one", "two")]
    assert len(lines(later[0])) == pytest.approx(len(lines(later[1])), abs=1)


def flat_settings(world: Path, folder: Path) -> dict[str, Any]:
    """The keys of the small recipe, for a command line, with half the batch for each of two."""
    from fakes import SMALL, SMALL_ROUNDS

    return {
        **SMALL,
        **SMALL_ROUNDS,
        "model.name_or_path": world / "model",
        "data.train": world / "prompts.jsonl",
        "output_dir": folder,
        "online.reward_models": [str(world / "rm")],
        "trainer.per_device_train_batch_size": 2,
    }
