"""Each method that trains nothing, with TensorBoard and Trackio: killed, resumed, one record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from killing import TRACKED, command_in_process
from tracked import differences, in_tensorboard, in_trackio, logged, texts_in_tensorboard

from aligner.methods.catalogue import METHODS

ALONE: dict[str, list[str]] = {
    "mosaic": ["mosaic", "tiny/mosaic", "mosaic.epochs=1"],
    "evolve": ["evolve", "tiny/evolve"],
    "arena": [
        *("arena", "battle", "tiny/arena", "data.train={path: prompts.jsonl, max_rows: 6}"),
        "arena.contestants=[{name: base, model: model}, "
        "{name: strong, answers: experts-strong.jsonl}]",
        "arena.rating.resamples=20",
    ],
    "select": [
        *("data", "select", "tiny/select", "data.train={path: prompts.jsonl, max_rows: 8}"),
        *("select.policy=model", "select.reward_models=[toy]", "select.strategy=uncertainty"),
        *("select.budget=2", "select.num_samples=2", "select.max_new_tokens=8"),
    ],
    "discover": ["discover", "tiny/discover", "discover.proposals=1", "discover.seeds=1"],
}
"""Of each method without a trainer of its own: a command in the toy world."""
OF_STAGES = ("online", "flywheel")
"""Those whose runs hold others: `test_tracked_runs.py` and `test_flywheel.py` have them."""
TRAININGS = ("sft", "dpo", "sapo", "reward", "rlhf")


def test_every_method_is_run_with_trackers() -> None:
    assert {*ALONE, *OF_STAGES, *TRAININGS} == set(METHODS)


@pytest.mark.parametrize("moment", TRACKED)
@pytest.mark.slow
@pytest.mark.parametrize("method", ALONE)
def test_a_killed_command_has_one_record(
    method: str, moment: str, toy_world: Path, tmp_path: Path, own_cache: Path
) -> None:
    """In TensorBoard and in Trackio: what is logged, the results, the recipe."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("trackio")
    run, project = tmp_path / "run", f"p{abs(hash(tmp_path))}"
    arguments = [*ALONE[method], f"output_dir={run}", "report_to=[tensorboard, trackio]"]
    environment = {"TRACKIO_PROJECT": project, "ALIGNER_CACHE": str(own_cache)}
    assert command_in_process(toy_world, arguments, environment, moment) == -9
    assert not (run / "manifest.json").exists()
    assert command_in_process(toy_world, [*arguments, "--resume"], environment) == 0
    results = json.loads((run / "manifest.json").read_text())["results"]
    (in_database,) = in_trackio(project).values()
    for found in (in_tensorboard(run), in_database):
        assert not differences(found, logged(run))
        assert {name for name, _ in found if name.startswith("results/")} == {
            f"results/{name}" for name in results
        }
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert f"| method | {method} |" in texts_in_tensorboard(run)["recipe"][0]
