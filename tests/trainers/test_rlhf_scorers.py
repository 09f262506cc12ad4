"""Scorers of one's own as rewards of `rlhf`, and scoring while responses are still sampled."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe
from sampled import largest_difference, trained, weights

import aligner
from aligner.config.callables import describe
from aligner.errors import DataError, RecipeError, UsageError
from aligner.methods.pipeline import run_recipe
from aligner.methods.rlhf.rollout import Roller
from aligner.reward_models.base import Scores
from aligner.reward_models.functions import FunctionScorer
from aligner.runs.files import read_metrics

REGEX = "verifier:regex=[a-m]"


def early_letters(
    prompts: Sequence[Any], completions: Sequence[str], references: Sequence[str | None]
) -> list[float]:
    """What the verifier of `REGEX` says."""
    return [float(any("a" <= letter <= "m" for letter in text)) for text in completions]


def length(
    prompts: Sequence[Any], completions: Sequence[str], references: Sequence[str | None]
) -> list[float]:
    return [len(text) / 10 for text in completions]


class Lengths:
    """A scorer that is an object."""

    name, range = "lengths", (0.0, 1e9)

    def score(self, prompts: Any, completions: Sequence[str], references: Any = None) -> Scores:
        return Scores(length(prompts, completions, references))

    def fingerprint(self) -> str:
        return "lengths 1"


def overrides(world: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """Of a small run without rewards."""
    recipe = small_recipe("rlhf", world, folder, "trainer.max_steps=2").recipe
    given = {"trainer": recipe.trainer, "report.num_prompts": 0, "data.max_length": 256}
    trainer = {f"trainer.{key}": value for key, value in given.pop("trainer").items()}
    return {
        "model.name_or_path": str(world / "model"),
        "data.train": str(world / "sft.jsonl"),
        "output_dir": str(folder),
        "rlhf.group_size": 4,
        "rlhf.max_new_tokens": 8,
        **given,
        **trainer,
        **more,
    }


# --- a reward of one's own ------------------------------------------------------------------------


def test_a_function_rewards_as_the_named_scorer_does(small_world: Path, tmp_path: Path) -> None:
    named = overrides(small_world, tmp_path / "named", **{"rlhf.reward_models": [REGEX]})
    aligner.train("rlhf", overrides=named)
    own = overrides(small_world, tmp_path / "own")
    run = aligner.train("rlhf", scorer=early_letters, overrides=own).run_dir
    assert largest_difference(tmp_path / "named", tmp_path / "own") == 0.0
    text = describe(early_letters)
    assert text.startswith(f"callable {__name__}:early_letters sha256:")
    record = aligner.open_run(run)
    assert record.recipe.rlhf.reward_models == [text]
    assert record.resolved.origins["rlhf.reward_models"] == "scorer="
    first = read_metrics(run)[0]
    assert first[f"rewards/{__name__}:early_letters/mean"] == first["reward"]
    card = (run / "final" / "README.md").read_text(encoding="utf-8")
    assert "given in Python, `scorer=`" in card
    shown = json.loads((run / "rollouts.json").read_text())
    assert list(shown[0]["scores"]) == [f"{__name__}:early_letters"]


def test_functions_objects_and_names_can_be_added_up(small_world: Path, tmp_path: Path) -> None:
    """In the order in which they were given, which weights follow."""
    given = overrides(small_world, tmp_path / "run", **{"rlhf.reward_weights": [1.0, 10.0, 100.0]})
    scorers = [partial(length), REGEX, Lengths()]
    run = aligner.train("rlhf", scorer=scorers, overrides=given).run_dir
    for line in read_metrics(run)[:2]:
        parts = [line[key] for key in line if key.startswith("rewards/")]
        assert len(parts) == 3
        of_length = line[f"rewards/{__name__}:Lengths/mean"]
        expected = 101 * of_length + 10 * line[f"rewards/{REGEX}/mean"]
        assert line["reward"] == pytest.approx(expected)


def test_a_run_is_not_resumed_with_another_function(small_world: Path, tmp_path: Path) -> None:
    given = overrides(small_world, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("aligner.training.fit.save_final", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            aligner.train("rlhf", scorer=early_letters, overrides=given)
    with pytest.raises(UsageError, match=r"rlhf\.reward_models"):
        aligner.train("rlhf", scorer=length, overrides=given, resume=True)
    aligner.train("rlhf", scorer=early_letters, overrides=given, resume=True)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_cannot_reward_is_refused(small_world: Path, tmp_path: Path) -> None:
    given = overrides(small_world, tmp_path / "run")
    with pytest.raises(RecipeError, match="which gives no scores"):
        aligner.train("rlhf", scorer=3, overrides=given)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="`scorer` is the reward of `rlhf`"):
        aligner.train("sft", scorer=length, overrides=given)
    both = given | {"rlhf.reward_models": [REGEX]}
    with pytest.raises(RecipeError, match=r"`rlhf\.reward_models` is given twice"):
        aligner.train("rlhf", scorer=length, overrides=both)
    two = given | {"launch.num_processes": 2}
    with pytest.raises(RecipeError, match="a callable as a scorer"):
        aligner.train("rlhf", scorer=length, overrides=two)
    again = given | {"rlhf.reward_models": [describe(length)]}
    with pytest.raises(RecipeError, match="was given in Python, and no recipe can name it"):
        aligner.train("rlhf", overrides=again)
    assert not (tmp_path / "run").exists()


# --- while others are sampled ---------------------------------------------------------------------


@pytest.fixture
def waits_for_the_first_score(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold sampling, once its last response is there, until something was scored."""
    scored, made = threading.Event(), Roller._response

    def slowed(roller: Roller, row: Any, *rest: Any) -> Any:
        seen.append(row["row"])
        if len(seen) == 16:
            assert scored.wait(60)
        return made(roller, row, *rest)

    seen: list[int] = []
    monkeypatch.setattr(Roller, "_response", slowed)
    return scored


def run_with(world: Path, folder: Path, function: Any, **flags: Any) -> list[dict[str, Any]]:
    """The log of two steps with a function in the background."""
    scorer = FunctionScorer(function, in_background=True)
    given = overrides(world, folder, **{"rlhf.generation_batch_size": 4, **flags})
    return read_metrics(aligner.train("rlhf", scorer=scorer, overrides=given).run_dir)


def test_groups_are_scored_while_others_are_sampled(
    small_world: Path, tmp_path: Path, waits_for_the_first_score: threading.Event
) -> None:
    """The first before the last response is there; and the result is that of scoring afterwards."""
    calls: list[tuple[str, int]] = []

    def slow(*columns: Any) -> list[float]:
        calls.append((threading.current_thread().name, len(columns[0])))
        waits_for_the_first_score.set()
        return early_letters(*columns)

    log = run_with(small_world, tmp_path / "run", slow)
    assert sum(count for _, count in calls) == 32
    assert all(count % 4 == 0 for _, count in calls)
    assert len(calls) > 2
    assert {name.rpartition("_")[0] for name, _ in calls} == {"scoring"}
    after = overrides(small_world, tmp_path / "after", **{"rlhf.generation_batch_size": 4})
    aligner.train("rlhf", scorer=early_letters, overrides=after)
    assert largest_difference(tmp_path / "run", tmp_path / "after") == 0.0
    assert trained(log, "reward") == trained(read_metrics(tmp_path / "after"), "reward")


def test_what_a_scorer_in_the_background_raises_ends_the_run(
    small_world: Path, tmp_path: Path
) -> None:
    def broken(*columns: Any) -> list[float]:
        raise ZeroDivisionError("its own")

    with pytest.raises(ZeroDivisionError, match="its own"):
        run_with(small_world, tmp_path / "run", broken)
    recipe = small_recipe(
        "rlhf", small_world, tmp_path / "none", "rlhf.reward_models=['verifier:exact']",
        data__train=str(tmp_path / "rows.jsonl"),
    )  # fmt: skip
    rows = [json.dumps({"prompt": f"say {i}"}) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"rows\.jsonl:\d+, response \d"):
        run_recipe(recipe)


def test_scorers_in_the_background_and_beside_keep_their_order(
    small_world: Path, tmp_path: Path
) -> None:
    """A function that is asked afterwards stands before a verifier that is asked meanwhile."""
    given = {"rlhf.reward_weights": [1.0, 10.0]}
    for name, scorers in {"one": [length, REGEX], "other": [length, early_letters]}.items():
        folder = tmp_path / name
        aligner.train("rlhf", scorer=scorers, overrides=overrides(small_world, folder, **given))
    assert weights(tmp_path / "one").keys() == weights(tmp_path / "other").keys()
    assert largest_difference(tmp_path / "one", tmp_path / "other") == 0.0
