"""Objectives inside the trainer: mixtures, files, warm-up, references that are not needed, and the
two guards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import small_recipe

from aligner.errors import DataError, RecipeError, TrainingError
from aligner.events import StageProgress, Warned
from aligner.losses.catalogue import OBJECTIVES, load_objective
from aligner.losses.table import shape_of
from aligner.losses.types import Settings
from aligner.methods.dpo.start_checks import AccuracyAlarm, check_initial_gradient
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_json, read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")

SIGNATURE = (
    "self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, "
    "reference_rejected_logps"
)
DPO_AS_FILE = f"""import torch.nn.functional as F

def mine({SIGNATURE}):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
    return -F.logsigmoid(self.beta * rho)
"""


def train(
    world: Path, folder: Path, *overrides: str, **flags: Any
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The log of a run, and the events that it sent."""
    events: list[Any] = []
    overrides = ("trainer.logging_steps=1", "trainer.learning_rate=2e-3", *overrides)
    outcome = run_recipe(
        small_recipe("dpo", world, folder, *overrides, **flags), on_event=events.append
    )
    return read_metrics(outcome.run_dir), events


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log if line["split"] == "train"]


def warnings_in(events: list[Any]) -> list[str]:
    return [event.text for event in events if isinstance(event, Warned)]


def test_a_mixture_with_sft_trains_as_the_objective_with_its_nll_term(small_world, tmp_path):
    mixed, _ = train(small_world, tmp_path / "mixed", "dpo.loss={sigmoid: 1.0, sft: 0.5}")
    added, _ = train(small_world, tmp_path / "added", "dpo.nll_weight=0.5")
    assert losses(mixed) == pytest.approx(losses(added), abs=1e-5)
    assert losses(mixed)[0] > losses(mixed)[-1]


def test_an_objective_from_a_file_trains_as_the_one_it_spells_out(small_world, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(DPO_AS_FILE)
    found, _ = train(small_world, tmp_path / "file", f"dpo.loss={file}")
    expected, _ = train(small_world, tmp_path / "name")
    assert losses(found) == pytest.approx(losses(expected), abs=1e-6)
    assert (tmp_path / "file" / "objectives" / "0-mine.py").read_text() == DPO_AS_FILE


def test_a_run_does_not_go_on_with_another_objective_under_the_same_name(small_world, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(DPO_AS_FILE)
    recipe = small_recipe("dpo", small_world, tmp_path / "run", f"dpo.loss={file}")
    run_recipe(recipe)
    (tmp_path / "run" / "manifest.json").unlink()
    file.write_text(DPO_AS_FILE.replace("-F", "-2 * F"))
    with pytest.raises(DataError, match=r"mine\.py: dpo\.loss: is not what it was"):
        run_recipe(recipe, resume=True)


def test_a_file_that_reads_well_but_cannot_train_is_refused_before_training(small_world, tmp_path):
    file = tmp_path / "nan.py"
    file.write_text(
        DPO_AS_FILE.replace("-F.logsigmoid(self.beta * rho)", "torch.sqrt(self.beta * rho)")
    )
    with pytest.raises(RecipeError, match=r"nan\.py cannot be trained with"):
        train(small_world, tmp_path / "run", f"dpo.loss={file}")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_warm_up_trains_dpo_and_then_the_objective(small_world, tmp_path):
    warm, events = train(
        small_world, tmp_path / "warm", "dpo.loss=discopop", "dpo.warmup_steps_dpo=2"
    )
    plain, _ = train(small_world, tmp_path / "plain")
    assert losses(warm)[:2] == pytest.approx(losses(plain)[:2], abs=1e-6)
    assert losses(warm)[2:] != pytest.approx(losses(plain)[2:], abs=1e-3)
    assert not warnings_in(events)


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_objectives_without_a_reference_compute_none(small_world, tmp_path, loss):
    log, events = train(
        small_world, tmp_path / "run", f"dpo.loss={loss}", "dpo.beta=2.0", data__eval=0.25
    )
    scored = {event.name for event in events if isinstance(event, StageProgress)}
    assert not any("reference" in name for name in scored)
    assert losses(log)[-1] < losses(log)[0]
    assert all(
        line["rewards/margins"]
        == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"], abs=1e-4)
        for line in log
    )


def test_a_batch_statistic_is_that_of_the_micro_batch(small_world, tmp_path):
    """8 x 1 and 4 x 2 are the same training for DPO and different ones for an objective that reads
    the batch."""
    for loss, same in (("sigmoid", True), ("dbaql", False)):
        shapes = [("8", "1"), ("4", "2")]
        logs = [
            train(
                small_world,
                tmp_path / f"{loss}-{batch}",
                f"dpo.loss={loss}",
                f"trainer.per_device_train_batch_size={batch}",
                f"trainer.gradient_accumulation_steps={accumulated}",
                "trainer.train_sampling_strategy=random",
            )[0]
            for batch, accumulated in shapes
        ]
        assert (losses(logs[0]) == pytest.approx(losses(logs[1]), abs=1e-5)) == same


# --- guards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tau", "is_wrong"), [(0.05, True), (0.1, True), (0.105, False), (0.2, False)]
)
def test_the_wrong_slope_of_discopop_is_told_exactly_where_it_is_wrong(tau, is_wrong):
    """It is (1 - ln 2) / (4 tau) - 3/4, positive below tau = 0.1023."""
    settings = Settings(beta=0.05, tau=tau)
    assert shape_of(OBJECTIVES["discopop"], settings).slope_at_start == pytest.approx(
        0.306853 / (4 * tau) - 0.75, abs=1e-4
    )
    assert bool(check_initial_gradient(OBJECTIVES["discopop"], settings)) == is_wrong


def test_the_hump_is_where_the_paper_has_it():
    """rho = 1.44012 at beta = tau = 0.05."""
    assert "carry past rho = 1.4" in str(
        check_initial_gradient(OBJECTIVES["discopop"], Settings(beta=0.05, tau=0.05))
    )


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name not in ("discopop", "exo_pair")]
)
def test_no_other_objective_starts_on_a_wrong_slope(name):
    assert check_initial_gradient(OBJECTIVES[name], Settings(beta=0.1)) is None


def test_a_part_that_counts_per_token_does_not_hide_a_wrong_slope():
    """For one token its share of the slope is large; for an answer of 20 the discovered part wins,
    and starts wrong."""
    mixture = load_objective({"discopop": 0.8, "sft": 0.2})
    settings = Settings(beta=0.05)
    assert check_initial_gradient(mixture, settings, length=1) is None
    assert check_initial_gradient(mixture, settings, length=20)


def test_the_steps_of_a_warm_up_do_not_count_for_the_alarm():
    heard: list[str] = []
    alarm = AccuracyAlarm(20, stop=False, tell=heard.append, after=30)
    state = SimpleNamespace(log_history=[])
    for step, accuracy in ((10, 0.7), (30, 0.9), (40, 0.4), (50, 0.3), (60, 0.2)):
        state.log_history.append({"step": step, "rewards/accuracies": accuracy})
        alarm.on_log(None, state, None)
    (text,) = heard
    assert text.startswith("after 50 steps")
    assert "since the warm-up of 30" in text


def test_there_is_no_alarm_without_a_reference(small_world, tmp_path):
    _, events = train(
        small_world, tmp_path, "dpo.loss=orpo", "trainer.learning_rate=0.0", "dpo.alarm_steps=3"
    )
    assert not warnings_in(events)


def test_the_warning_comes_before_training_and_stays_in_the_report(small_world, tmp_path):
    _, events = train(
        small_world, tmp_path / "run", "dpo.loss=discopop", "dpo.beta=0.05", "trainer.max_steps=1"
    )
    (warning,) = warnings_in(events)
    assert "wrong slope" in warning
    assert "warmup_steps_dpo" in warning
    assert read_json(tmp_path / "run", "warnings.json") == [warning]
    assert "wrong slope" in (tmp_path / "run" / "report.html").read_text()


def test_an_alarm_is_raised_when_pairs_stay_ranked_wrongly(small_world, tmp_path):
    """With a learning rate of 0 both answers keep their reward of 0, and no pair is ranked
    rightly."""
    frozen = ("trainer.learning_rate=0.0", "dpo.alarm_steps=3")
    _, events = train(small_world, tmp_path / "warn", *frozen)
    (warning,) = warnings_in(events)
    assert warning.startswith("after 3 steps")
    with pytest.raises(TrainingError, match="after 3 steps"):
        train(small_world, tmp_path / "stop", *frozen, "dpo.on_alarm=stop")
    assert len(read_metrics(tmp_path / "stop")) == 3
    _, events = train(
        small_world, tmp_path / "off", "trainer.learning_rate=0.0", "dpo.alarm_steps=0"
    )
    assert not warnings_in(events)


def test_no_alarm_where_the_policy_learns(small_world, tmp_path):
    _, events = train(small_world, tmp_path / "run", "trainer.max_steps=6", "dpo.alarm_steps=5")
    assert not warnings_in(events)


@pytest.mark.parametrize(
    ("accuracies", "told"),
    [
        ([0.0, 0.4, 0.49], 1),  # one alarm, at step 30, though the next log is as bad
        ([0.0, 0.5, 0.1], 0),
        ([0.0, 0.6], 0),  # not yet
    ],
)
def test_the_alarm_looks_once_at_the_first_log_at_or_after_its_step(accuracies, told):
    heard: list[str] = []
    alarm = AccuracyAlarm(25, stop=False, tell=heard.append)
    state = SimpleNamespace(log_history=[])
    for number, accuracy in enumerate([*accuracies, *([0.3] if told else [])], 1):
        state.log_history.append({"step": 10 * number, "rewards/accuracies": accuracy})
        alarm.on_log(None, state, None)
        state.log_history.append({"step": 10 * number, "eval_rewards/accuracies": 0.1})
        alarm.on_log(None, state, None)
    assert len(heard) == told


def test_objectives_that_trl_does_not_have_train(small_world, tmp_path):
    for loss in ("kto_pair", "aql", "padll", "aqfl", "cell", "pfl", "ipo_sum"):
        log, _ = train(
            small_world, tmp_path / loss, f"dpo.loss={loss}", "dpo.beta=0.2", "trainer.max_steps=6"
        )
        assert losses(log)[-1] < losses(log)[0], loss
