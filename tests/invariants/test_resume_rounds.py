"""Online rounds that are killed at any moment, and resumed, make what uninterrupted ones make: the
same pairs to the byte, and the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import write_rounds_world
from killing import ORACLE, ROUNDS, STAGES_OF_AN_ORACLE, STAGES_OF_TWO_ROUNDS, run_in_process

FLAGS: dict[str, Any] = {"online__keep": "best", "dpo__nll_weight": 0.2}
"""Of every run here; weights that are not kept are one more thing that a kill could cost."""


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_world(tmp_path_factory.mktemp("rounds"), toy_world)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run_in_process("online", world, folder, flags=FLAGS) == 0
    return folder


def assert_same(run: Path, whole: Path) -> None:
    """The same pairs, weights that are kept, measures and results."""
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    files += [path.relative_to(whole) for path in whole.rglob("pairs.jsonl")]
    assert len(files) >= 4
    for file in [*files, Path("rounds.json"), Path("metrics.jsonl")]:
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    results = [
        json.loads((folder / "manifest.json").read_text())["results"] for folder in (run, whole)
    ]
    assert results[0] == results[1]
    assert not list(run.rglob("*.unfinished"))
    assert not (run / "stale").exists(), "nothing was taken for something else"
    assert not list(run.rglob(".*.tmp"))


def kill_and_resume(
    world: Path, run: Path, moment: str, count: int, flags: dict[str, Any] = FLAGS
) -> None:
    code = run_in_process("online", world, run, flags=flags, moment=moment, count=count)
    assert code == -9
    assert not (run / "manifest.json").exists()
    assert run_in_process("online", world, run, flags=flags, resume=True) == 0


@pytest.mark.parametrize("moment", ["while the second round is trained"])
def test_killed_and_resumed_equals_uninterrupted(
    world: Path, whole: Path, tmp_path: Path, own_cache: Path, moment: str
) -> None:
    kill_and_resume(world, tmp_path / "run", moment, ROUNDS[moment][1])
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ROUNDS)
def test_killed_inside_every_stage_and_resumed_equals_uninterrupted(
    world: Path, whole: Path, tmp_path: Path, own_cache: Path, moment: str
) -> None:
    kill_and_resume(world, tmp_path / "run", moment, ROUNDS[moment][1])
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("count", range(1, STAGES_OF_TWO_ROUNDS + 1))
@pytest.mark.parametrize("moment", ["before a stage is done", "after a stage is done"])
def test_killed_at_every_boundary_and_resumed_equals_uninterrupted(
    world: Path, whole: Path, tmp_path: Path, own_cache: Path, moment: str, count: int
) -> None:
    kill_and_resume(world, tmp_path / "run", moment, count)
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_killed_again_and_again_and_resumed_equals_uninterrupted(
    world: Path, whole: Path, tmp_path: Path, own_cache: Path
) -> None:
    """Each session finishes one stage, or keeps one part of it."""
    run, sessions = tmp_path / "run", 0
    moments = (("after a shard of responses is kept", 1), ("after a stage is done", 1))
    while not (run / "manifest.json").exists():
        moment, count = moments[sessions % 2]
        resume = sessions > 0
        code = run_in_process(
            "online", world, run, flags=FLAGS, resume=resume, moment=moment, count=count
        )
        assert code in (0, -9)
        sessions += 1
        assert sessions < 60
    assert sessions > STAGES_OF_TWO_ROUNDS
    assert_same(run, whole)


# --- with an oracle -------------------------------------------------------------------------------

LETTERS = """
def early(prompt, response, answer=None):
    return sum(response.count(letter) for letter in 'abcd') - 0.1 * len(response)
"""


@pytest.fixture(scope="module")
def asked(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The flags of a run with an oracle, and such a run."""
    (world / "letters.py").write_text(LETTERS)
    flags = {
        **FLAGS,
        "online__oracle__scorer": f"verifier:{world / 'letters.py'}:early",
        "online__oracle__budget": 12,
        "online__oracle__refresh__learning_rate": 1e-3,
        "online__oracle__refresh__num_train_epochs": 4,
        "trainer__learning_rate": 1e-6,  # so that the second round says enough that ends by itself
    }
    folder = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNER_CACHE", str(folder / "cache"))
        assert run_in_process("online", world, folder / "run", flags=flags) == 0
    return flags, folder / "run"


def kill_resume_and_compare(
    world: Path, asked: tuple[dict[str, Any], Path], run: Path, moment: str, count: int
) -> None:
    flags, whole = asked
    kill_and_resume(world, run, moment, count, flags)
    assert_same(run, whole)
    (ledger,) = (run.parent / "cache" / "oracle").glob("*.jsonl")
    answers = [json.loads(line)["part"] for line in ledger.read_text().splitlines()]
    assert len(answers) == len(set(answers)) == 12, "no answer was paid for twice"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ORACLE)
def test_killed_inside_what_an_oracle_adds_and_resumed_equals_uninterrupted(
    world: Path,
    asked: tuple[dict[str, Any], Path],
    tmp_path: Path,
    own_cache: Path,
    moment: str,
) -> None:
    kill_resume_and_compare(world, asked, tmp_path / "run", moment, ORACLE[moment][1])


@pytest.mark.slow
@pytest.mark.parametrize("count", STAGES_OF_AN_ORACLE)
@pytest.mark.parametrize("moment", ["before a stage is done", "after a stage is done"])
def test_killed_at_the_boundaries_of_an_oracle_and_resumed_equals_uninterrupted(
    world: Path,
    asked: tuple[dict[str, Any], Path],
    tmp_path: Path,
    own_cache: Path,
    moment: str,
    count: int,
) -> None:
    kill_resume_and_compare(world, asked, tmp_path / "run", moment, count)
