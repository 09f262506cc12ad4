"""`import aligner`: instant, complete, and the same training as the command line's, with rows and
losses that are in no file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from fakes import SMALL, small_recipe
from torch import Tensor

import aligner
from aligner.config.api import load_recipe
from aligner.events import Event, Metrics
from aligner.losses.types import PairLogps, Settings
from aligner.methods.pipeline import run_recipe
from aligner.reports.training import write_report

HEAVY = ("torch", "transformers", "pydantic", "yaml", "typer", "numpy", "aligner.errors")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def overrides(world: Path, output_dir: Path, **more: Any) -> dict[str, Any]:
    """What a training in the small world needs beside its rows; `__` stands for the dot."""
    given = {key.replace("__", "."): value for key, value in more.items()}
    return {
        **SMALL,
        "model.name_or_path": str(world / "model"),
        "output_dir": str(output_dir),
        **given,
    }


def dpo_like(pairs: PairLogps, settings: Settings) -> Tensor:
    """DPO's loss, as a user would write it."""
    return F.softplus(-settings.beta * pairs.rho)


def hinge_like(pairs: PairLogps, settings: Settings) -> Tensor:
    """Another loss."""
    return torch.relu(1 - settings.beta * pairs.rho)


def weights(run_dir: Path) -> bytes:
    return (run_dir / "final" / "model.safetensors").read_bytes()


# --- the names ------------------------------------------------------------------------------------


def test_importing_the_package_loads_nothing() -> None:
    program = "import sys, aligner; dir(aligner); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "aligner" in loaded, done.stderr
    assert [name for name in HEAVY if name in loaded] == []
    assert [name for name in loaded if name.startswith("aligner.")] == []


def test_recipes_and_runs_are_read_without_torch() -> None:
    program = (
        "import sys, aligner; aligner.load_recipe('tiny/dpo'); aligner.open_run; aligner.train;"
        "aligner.load_rows; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "pydantic" in loaded, done.stderr
    assert [name for name in ("torch", "transformers", "datasets") if name in loaded] == []


@pytest.mark.parametrize("name", aligner.__all__)
def test_every_name_resolves_and_is_listed(name: str) -> None:
    value = getattr(aligner, name)
    assert value is not None
    assert name in dir(aligner)
    assert not callable(value) or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = aligner.trian  # type: ignore[attr-defined]


def test_editors_see_the_names_that_are_loaded_lazily() -> None:
    source = Path(aligner.__file__).read_text(encoding="utf-8")
    typed = source.partition("if TYPE_CHECKING:")[2].partition("__version__ =")[0]
    seen = {line.rpartition(" as ")[2] for line in typed.splitlines() if " as " in line}
    assert seen == set(aligner.__all__) - {"__version__"}


# --- recipes --------------------------------------------------------------------------------------


def test_a_recipe_object_is_checked_as_a_file_is() -> None:
    recipe = aligner.DpoRecipe(
        model=aligner.Model(name_or_path="m"),
        data=aligner.Data(train="pairs.jsonl"),
        output_dir="runs/x",
        trainer={"lerning_rate": 1e-3},
        early_stopping={},
    )
    with pytest.raises(aligner.errors.RecipeError, match="2 problems in the DpoRecipe") as caught:
        load_recipe(recipe)
    assert {problem.key for problem in caught.value.problems} == {
        "trainer.lerning_rate",
        "early_stopping",
    }


def test_values_remember_whether_they_came_from_the_object_or_an_override() -> None:
    recipe = aligner.DpoRecipe(
        model=aligner.Model(name_or_path="m"),
        data=aligner.Data(train="pairs.jsonl"),
        output_dir="runs/x",
    )
    resolved = load_recipe(recipe, {"dpo.beta": 0.3})
    assert resolved.recipe.dpo.beta == 0.3
    assert resolved.origins["dpo.beta"] == "overrides['dpo.beta']"
    assert resolved.origins["model.name_or_path"] == "the DpoRecipe"
    assert resolved.origins["seed"] == "default"
    again = load_recipe(resolved, {"seed": 3})
    assert again.origins["dpo.beta"] == "overrides['dpo.beta']"
    assert (again.recipe.seed, again.recipe.dpo.beta) == (3, 0.3)


def test_a_path_a_shipped_name_and_a_method_are_recipes(tmp_path: Path) -> None:
    shipped = load_recipe("tiny/dpo", {"trainer.max_steps": 2})
    assert (shipped.recipe.method, shipped.recipe.trainer["max_steps"]) == ("dpo", 2)
    file = tmp_path / "mine.yaml"
    file.write_text("method: sft\nmodel: {name_or_path: m}\ndata: {train: rows.jsonl}\n")
    assert load_recipe(file).origins["model.name_or_path"] == f"{file}:2"
    bare = load_recipe("sft", {"model.name_or_path": "m", "data.train": "rows.jsonl"})
    assert isinstance(bare.recipe, aligner.SftRecipe)


@pytest.mark.parametrize(
    ("recipe", "given", "message"),
    [
        ("no/such", {}, "no shipped recipe called"),
        ("dpo", {}, "give at least overrides="),
        ("dpo", {"dpo.betta": 1}, "dpo.betta"),
        ("tiny/mosaic", {}, "trains nothing"),
    ],
)
def test_what_cannot_be_trained_is_a_recipe_error(
    recipe: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(aligner.errors.RecipeError) as caught:
        aligner.train(recipe, overrides=given)
    assert message in str(caught.value)


def test_overrides_may_be_paths_and_sections_and_nothing_that_no_recipe_holds() -> None:
    given = {"model.name_or_path": Path("m"), "data.train": Path("rows.jsonl")}
    recipe = load_recipe("sft", {**given, "model.lora": aligner.Lora(r=4)}).recipe
    assert (recipe.model.name_or_path, recipe.model.lora.r) == ("m", 4)
    with pytest.raises(aligner.errors.RecipeError, match="`seed` is of the type `Tensor`"):
        load_recipe("sft", {**given, "seed": torch.tensor(1)})


def test_a_recipe_without_a_method_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {name_or_path: m}\n")
    with pytest.raises(aligner.errors.RecipeError, match="names no method"):
        load_recipe(file)


# --- rows in memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, Dataset.from_list, lambda rows: {"train": rows}])
def test_rows_in_memory_train_the_same_weights_as_a_file(
    small_world: Path, tmp_path: Path, make: Callable[[Any], Any]
) -> None:
    rows = make(read_rows(small_world / "pairs.jsonl"))
    filed = run_recipe(small_recipe("dpo", small_world, tmp_path / "filed"))
    held = aligner.train("dpo", rows=rows, overrides=overrides(small_world, tmp_path / "held"))
    assert weights(held.run_dir) == weights(filed.run_dir)
    assert held.results["train_loss"] == filed.results["train_loss"]


def test_both_splits_may_be_in_memory_and_the_books_balance(
    small_world: Path, tmp_path: Path
) -> None:
    rows = read_rows(small_world / "sft.jsonl")
    outcome = aligner.train(
        "sft",
        rows={"train": rows[:40], "eval": rows[40:]},
        overrides=overrides(small_world, tmp_path / "run", data__deduplicate=True),
    )
    run = aligner.open_run(outcome.run_dir)
    assert run.resolved.recipe.data.eval is not None
    assert "eval/loss" in run.results
    sources = (run.ledger or {})["sources"]
    assert [(one["role"], one["rows_read"], one["path"]) for one in sources] == [
        ("train", 40, "<rows in memory>"),
        ("eval", 8, "<rows in memory>"),
    ]
    assert run.resolved.origins["data.train"] == "rows="


def test_rows_are_mapped_by_columns(small_world: Path, tmp_path: Path) -> None:
    rows = [{"question": f"sort: {w}", "reply": w} for w in ("ab", "abc", "bcd", "cd")]
    columns = {"data.train.columns": {"prompt": "question", "completion": "reply"}}
    given = overrides(small_world, tmp_path / "run", trainer__max_steps=1) | columns
    assert aligner.train("sft", rows=rows, overrides=given).results["train_loss"] > 0


def test_broken_rows_are_named_by_their_index(small_world: Path, tmp_path: Path) -> None:
    rows: list[Any] = read_rows(small_world / "pairs.jsonl")[:6]
    rows[3] = {**rows[3], "chosen": [{"role": "assistant", "content": 7}]}
    rows[5] = "no row"
    with pytest.raises(aligner.errors.DataError) as caught:
        aligner.train("dpo", rows=rows, overrides=overrides(small_world, tmp_path / "run"))
    assert {problem.where for problem in caught.value.problems} == {"rows[3]", "rows[5]"}
    assert not (tmp_path / "run").exists()


def test_a_broken_row_of_the_held_out_split_is_named_too(small_world: Path, tmp_path: Path) -> None:
    rows = read_rows(small_world / "pairs.jsonl")[:6]
    both = {"train": rows, "eval": [*rows[:2], {"prompt": "p", "chosen": "c", "rejected": None}]}
    with pytest.raises(aligner.errors.DataError, match=r'rows\["eval"\]\[2\]'):
        aligner.train("dpo", rows=both, overrides=overrides(small_world, tmp_path / "run"))


class Frame:
    """Looks like a data frame."""

    def to_dict(self) -> None: ...


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (iter([]), r"make a list of it: `list\(rows\)`"),
        ("pairs.jsonl", "is of the type `str`, not a list of rows"),
        ({"test": []}, "has a split `test`"),
        ({}, "is an empty mapping"),
        (Frame(), r'rows.to_dict\("records"\)'),
        ([], "holds no rows"),
    ],
)
def test_what_is_no_list_of_rows_is_refused(
    small_world: Path, tmp_path: Path, rows: Any, message: str
) -> None:
    with pytest.raises(aligner.errors.DataError, match=message):
        aligner.train("dpo", rows=rows, overrides=overrides(small_world, tmp_path / "run"))


def stop_at(step: int) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, Metrics) and event.step == step:
            raise KeyboardInterrupt

    return listen


def stopped_run(world: Path, folder: Path, **parts: Any) -> dict[str, Any]:
    """Train with checkpoints and stop at step 3 of 4; return the overrides, to resume with."""
    given = overrides(world, folder, trainer__save_steps=2, trainer__save_strategy="steps")
    with pytest.raises(KeyboardInterrupt):
        aligner.train("dpo", overrides=given, on_event=stop_at(3), **parts)
    return given


def test_a_stopped_run_resumes_with_the_same_rows_and_refuses_others(
    small_world: Path, tmp_path: Path
) -> None:
    rows = read_rows(small_world / "pairs.jsonl")
    whole = aligner.train("dpo", rows=rows, overrides=overrides(small_world, tmp_path / "whole"))
    given = stopped_run(small_world, tmp_path / "run", rows=rows)
    with pytest.raises(aligner.errors.DataError, match="rows: has other content now"):
        aligner.train("dpo", rows=rows[1:], overrides=given, resume=True)
    path = str(small_world / "pairs.jsonl")
    with pytest.raises(aligner.errors.UsageError, match=r"data\.train"):
        aligner.train("dpo", overrides=given | {"data.train": path}, resume=True)
    resumed = aligner.train("dpo", rows=Dataset.from_list(rows), overrides=given, resume=True)
    assert weights(resumed.run_dir) == weights(whole.run_dir)


def test_a_recipe_whose_rows_were_in_memory_says_so_without_them(
    small_world: Path, tmp_path: Path
) -> None:
    given = overrides(small_world, tmp_path / "run") | {"data.train": "<rows in memory>"}
    with pytest.raises(aligner.errors.DataError, match="were given in Python"):
        aligner.train("dpo", overrides=given)


def test_overrides_are_a_mapping_and_a_method_may_be_mistyped() -> None:
    with pytest.raises(aligner.errors.RecipeError, match="a `list`, not a mapping"):
        aligner.train("dpo", overrides=["trainer.max_steps=2"])  # type: ignore[arg-type]
    with pytest.raises(aligner.errors.RecipeError, match=r"(.|\n)*did you mean `dpo`"):
        aligner.train("dpoo", overrides={})


def test_rows_and_an_override_for_them_are_one_too_many(small_world: Path, tmp_path: Path) -> None:
    given = overrides(small_world, tmp_path / "run") | {"data.train": "pairs.jsonl"}
    with pytest.raises(aligner.errors.RecipeError, match=r"`data.train` is given twice"):
        aligner.train("dpo", rows=[{}], overrides=given)


# --- a loss of one's own --------------------------------------------------------------------------


def test_a_loss_written_in_python_gives_the_losses_of_the_named_one(
    small_world: Path, tmp_path: Path
) -> None:
    path = {"data.train": str(small_world / "pairs.jsonl")}
    named = aligner.train("dpo", overrides=overrides(small_world, tmp_path / "named") | path)
    own = aligner.train(
        "dpo",
        objective=dpo_like,
        overrides=overrides(small_world, tmp_path / "own") | path,
    )
    losses = [
        [record["loss"] for record in aligner.open_run(run.run_dir).metrics if "loss" in record]
        for run in (named, own)
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert weights(named.run_dir) == weights(own.run_dir)


def test_the_record_names_the_loss_and_keeps_its_source(small_world: Path, tmp_path: Path) -> None:
    rows = read_rows(small_world / "pairs.jsonl")
    given = overrides(small_world, tmp_path / "run", dpo__tau=0.2)  # which no named loss may change
    run_dir = aligner.train("dpo", rows=rows, objective=dpo_like, overrides=given).run_dir
    run = aligner.open_run(run_dir)
    assert run.recipe.dpo.loss.startswith(f"callable {__name__}:dpo_like sha256:")
    assert run.resolved.origins["dpo.loss"] == "objective="
    card = (run.final_dir / "README.md").read_text(encoding="utf-8")
    assert run.recipe.dpo.loss in card
    assert "| given in Python, `objective=` |" in card
    kept = (run_dir / "objectives" / "callable.py").read_text(encoding="utf-8")
    assert kept.startswith("def dpo_like(")


def test_a_stopped_run_refuses_another_loss(small_world: Path, tmp_path: Path) -> None:
    rows = read_rows(small_world / "pairs.jsonl")
    given = stopped_run(small_world, tmp_path / "run", rows=rows, objective=dpo_like)
    with pytest.raises(aligner.errors.UsageError, match=r"dpo\.loss: .*hinge_like"):
        aligner.train("dpo", rows=rows, objective=hinge_like, overrides=given, resume=True)
    with pytest.raises(aligner.errors.UsageError, match=r"dpo\.loss"):
        aligner.train("dpo", rows=rows, overrides=given, resume=True)
    assert aligner.train("dpo", rows=rows, objective=dpo_like, overrides=given, resume=True).results


def scalar(pairs: PairLogps, settings: Settings) -> Tensor:
    return dpo_like(pairs, settings).mean()


def constant(pairs: PairLogps, settings: Settings) -> Tensor:
    return torch.zeros(len(pairs.chosen))


def infinite(pairs: PairLogps, settings: Settings) -> Tensor:
    return pairs.rho / 0


def broken(pairs: PairLogps, settings: Settings) -> Tensor:
    return pairs.rhoo  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (scalar, r"returned a tensor of shape \(\) for 3 pairs"),
        (constant, "without a gradient"),
        (infinite, "not finite"),
        (broken, "failed on three pairs: AttributeError"),
        (lambda pairs, settings: 1.0, "returned `float`, not a tensor"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_before_anything_is_read(
    small_world: Path, tmp_path: Path, objective: Any, message: str
) -> None:
    given = overrides(small_world, tmp_path / "run") | {"data.train": "not-there.jsonl"}
    with pytest.raises(aligner.errors.RecipeError, match=message):
        aligner.train("dpo", objective=objective, overrides=given)


def test_a_loss_belongs_to_dpo(small_world: Path, tmp_path: Path) -> None:
    given = overrides(small_world, tmp_path / "run") | {"data.train": "rows.jsonl"}
    with pytest.raises(aligner.errors.RecipeError, match="`objective` is the loss of `dpo`"):
        aligner.train("sft", objective=dpo_like, overrides=given)


def test_a_recorded_callable_is_no_loss_without_the_function(
    small_world: Path, tmp_path: Path
) -> None:
    given = overrides(small_world, tmp_path / "run", dpo__loss="callable mine:loss sha256:0")
    with pytest.raises(aligner.errors.RecipeError, match="was a function given in Python"):
        aligner.train("dpo", overrides=given | {"data.train": str(small_world / "pairs.jsonl")})


@pytest.mark.parametrize("key", ["launch.num_processes", "launch.num_machines"])
@pytest.mark.parametrize("part", ["rows", "objective"])
def test_several_processes_cannot_share_what_is_in_memory(
    small_world: Path, tmp_path: Path, key: str, part: str
) -> None:
    rows = read_rows(small_world / "pairs.jsonl")
    parts: dict[str, Any] = {"rows": rows} if part == "rows" else {"objective": dpo_like}
    given = overrides(small_world, tmp_path / "run") | {key: 2}
    if key == "launch.num_machines":
        given |= {"launch.num_processes": 2, "launch.main_process_ip": "127.0.0.1"}
    if part == "objective":
        given["data.train"] = str(small_world / "pairs.jsonl")
    with pytest.raises(aligner.errors.RecipeError, match="several processes cannot train with"):
        aligner.train("dpo", overrides=given, **parts)


# --- models, rows, scores, runs -------------------------------------------------------------------


def test_a_model_answers_and_is_scored_by_a_function(small_world: Path) -> None:
    model = aligner.load_model(small_world / "model")
    tokenizer = aligner.load_tokenizer(small_world / "model")
    rows = aligner.load_rows([{"prompt": "sort: ba", "answer": "ab"}] * 3, "prompts")
    sampling = aligner.Sampling(max_new_tokens=4, temperature=0.0)
    answers = aligner.generate(model, tokenizer, ["sort: ba"], sampling)
    asked: list[Any] = []

    def length(prompts: Any, completions: Any, references: Any) -> list[int]:
        asked.append((prompts, completions, references))
        return [len(completion) for completion in completions]

    found = aligner.evaluate(
        model, tokenizer, rows, task="prompts", scorer=length, sampling=sampling
    )
    assert asked == [(["sort: ba"] * 3, [answers[0][0].text] * 3, ["ab"] * 3)]
    assert found["score"] == len(answers[0][0].text)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0], "1 scores for 2 answers"), ([0.0, float("nan")], r"for rows\[1\]")],
)
def test_a_scoring_function_gives_one_finite_number_for_each_answer(
    small_world: Path, scores: list[float], message: str
) -> None:
    model = aligner.load_model(small_world / "model")
    tokenizer = aligner.load_tokenizer(small_world / "model")
    rows = aligner.load_rows([{"prompt": "sort: ba"}] * 2, "prompts")
    sampling = aligner.Sampling(max_new_tokens=2)
    with pytest.raises(aligner.errors.DataError, match=message):
        aligner.evaluate(
            model,
            tokenizer,
            rows,
            task="prompts",
            scorer=lambda *_: scores,
            sampling=sampling,
        )


def test_a_trainable_model_has_the_adapter_that_is_asked_for(small_world: Path) -> None:
    section = aligner.Model(name_or_path=str(small_world / "model"), lora=aligner.Lora(r=2))
    model = aligner.load_model(section, trainable=True)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)


def test_rows_of_a_file_and_of_a_list_are_the_same(small_world: Path) -> None:
    filed = aligner.load_rows(small_world / "pairs.jsonl", "preference")
    held = aligner.load_rows(read_rows(small_world / "pairs.jsonl"), "preference")
    assert (filed[3].origin, held[3].origin) == (f"{small_world / 'pairs.jsonl'}:4", "rows[3]")
    assert [(row.prompt, row.chosen) for row in filed] == [(row.prompt, row.chosen) for row in held]
    with pytest.raises(aligner.errors.DataError, match=r"rows\[1\]"):
        aligner.load_rows([{"text": "a"}, {"text": 3}], "sft")
    assert len(aligner.load_rows([{"text": "a"}, {"text": 3}], "sft", on_bad_row="drop")) == 1


def test_a_run_can_be_read(tmp_path: Path, monkeypatch: Any) -> None:
    from example_run import trained_run

    monkeypatch.chdir(tmp_path)
    trained_run(Path("runs/dpo"), "dpo", steps=20).finish(
        {"eval_loss": 0.3567}, [], write_card=lambda *_: None, write_report=write_report
    )
    run = aligner.open_run("runs/dpo")
    assert isinstance(run.recipe, aligner.DpoRecipe)
    assert run.is_done
    assert run.results["eval_loss"] == 0.3567
    assert run.manifest
    assert run.manifest["method"] == "dpo"
    assert [record["step"] for record in run.metrics] == list(range(1, 21))
    assert (run.ledger or {})["splits"]["train"]["rows"] == 3789
    assert run.samples[0]["before"] == "1 3 3 9"
    assert (run.final_dir / "config.json").is_file()
    assert run.report.is_file()
    unfinished = trained_run(Path("runs/sft"), steps=5)
    view = aligner.open_run(unfinished.dir)
    assert (view.is_done, view.results, view.manifest, len(view.metrics)) == (False, {}, None, 5)


def test_what_is_no_run_is_told_so(tmp_path: Path, monkeypatch: Any) -> None:
    from example_run import trained_run

    with pytest.raises(aligner.errors.UsageError, match="there is no folder"):
        aligner.open_run(tmp_path / "nothing")
    with pytest.raises(aligner.errors.UsageError, match="is not a run directory"):
        aligner.open_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    trained_run(Path("runs/sft"), steps=1)
    with pytest.raises(aligner.errors.UsageError, match="the run is runs/sft"):
        aligner.open_run("runs/sft/final")
