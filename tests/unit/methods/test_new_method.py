"""A method and a builder are each a folder and a line: here both are added from a temporary folder,
and the command line, the checks, the pipeline, the report, the card and the pages know them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aligner.config.method import TrainingMethod
from aligner.config.trainer_keys import CLASSES
from aligner.methods.catalogue import METHODS, method_of, trainer_settings, training_of
from aligner.methods.steps import steps_of

PULL = {
    "recipe.py": '''
"""The recipe of `aligner pull`."""

from typing import Literal

from aligner.config.choices import PREFERENCE_FORMATS
from aligner.config.recipe_problem import problem_at
from aligner.config.method import Flag, TrainingMethod
from aligner.config.recipe import Section, Strength, TrainRecipe
from aligner.config.view import refuse_formats


class Pull(Section):
    """Chosen responses up, rejected ones down."""

    strength: Strength = 0.5
    """Weight of the difference."""


class PullRecipe(TrainRecipe):
    """`aligner pull`."""

    method: Literal["pull"] = "pull"
    """What to do."""
    pull: Pull = Pull()
    """What belongs to this method alone."""


def _formats(view):
    yield from refuse_formats(view, PREFERENCE_FORMATS, "pull", "it needs pairs")


def _not_seven(view):
    if view["pull.strength"] == 7:
        yield problem_at("pull.strength", "is seven", "any other number")


METHOD = TrainingMethod(
    recipe=PullRecipe,
    title="pulling",
    help="Pull the two responses of a pair apart.",
    examples=("aligner pull recipe.yaml pull.strength=0.1",),
    rules=(_formats, _not_seven),
    flags=(Flag("pull_strength", "pull.strength", "Weight of the difference."),),
    trainer_class="transformers.TrainingArguments",
    defaults={"learning_rate": 3e-4},
    settings=("strength",),
    metrics={"loss": False, "rewards/margins": True},
    charts=(("How far apart", [("train", "rewards/margins", "train")]),),
    in_short=lambda pull: f"strength {pull.strength:g}",
    card_note=lambda pull: f"strength {pull['strength']:g}",
    checkpoint_files=lambda recipe: {"config.json": "the model's own"},
)
''',
    "steps.py": '''
"""The steps of `pull`: those of every method."""

from aligner.methods.steps import TrainingSteps


class PullSteps(TrainingSteps):
    """Pulling."""


STEPS = PullSteps()
''',
    "encode.py": '''
"""Pairs as DPO reads them."""

from functools import partial

from aligner.tokenization.dataset import RowEncoder, TokenizedRow
from aligner.tokenization.encode import encode_pair
from aligner.tokenization.unread_keys import unread_of


def encoder(recipe, tokenizer):
    def encode(row, limit):
        pair = encode_pair(tokenizer, row)
        answers = len(pair.chosen_ids) + len(pair.rejected_ids)
        length = len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))
        columns = {
            "prompt_ids": pair.prompt_ids,
            "chosen_ids": pair.chosen_ids,
            "rejected_ids": pair.rejected_ids,
            "weight": row.weight,
            "length": length,
        }
        return TokenizedRow(columns, 2 * len(pair.prompt_ids) + answers, answers, length)

    return RowEncoder(encode, partial(unread_of, tokenizer))
''',
    "train.py": '''
"""Train."""

from aligner.losses.types import Settings
from aligner.models.loading import load_policy
from aligner.training.arguments import preference_arguments
from aligner.training.fit import fit
from aligner.training.preference import PairCollator, PreferenceTrainer


def train(job):
    recipe = job.recipe
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    trainer = PreferenceTrainer(
        model=model,
        args=preference_arguments(recipe, job.run),
        data_collator=PairCollator(job.tokenizer.pad_token_id),
        train_dataset=job.prepared.train,
        eval_dataset=job.prepared.eval,
        processing_class=job.tokenizer,
        objective=lambda pairs, settings: settings.beta * (pairs.rejected - pairs.chosen),
        settings=Settings(recipe.pull.strength),
        needs_reference=False,
    )
    return fit(trainer, recipe, job.run, job.on_event)
''',
}

SHOUT = {
    "recipe.py": '''
"""The recipe of `aligner shout`."""

from typing import Literal

from aligner.config.method import Method
from aligner.config.recipe import Data, Recipe, Section


class Shout(Section):
    """Loud rows."""

    marks: int = 1
    """How many exclamation marks."""


class ShoutRecipe(Recipe):
    """`aligner shout`."""

    method: Literal["shout"] = "shout"
    """What to do."""
    data: Data
    """Where the rows come from."""
    shout: Shout = Shout()
    """What belongs to this builder alone."""


METHOD = Method(
    recipe=ShoutRecipe,
    help="Make rows loud.",
    examples=("aligner shout --data rows.jsonl",),
    run="shout_builder.build:run_shout",
    summary=lambda recipe: [("marks", str(recipe.shout.marks), "shout.marks")],
    paths=lambda run_dir: {"data": run_dir / "rows.jsonl"},
    report="shout_builder.build:write_page",
)
''',
    "build.py": '''
"""Build."""

import json

from aligner.data.loading import load_rows
from aligner.runs.session import Session


def run_shout(resolved, **options):
    session = Session(resolved=resolved, **options)
    session.check_place()
    if (done := session.done()) is not None:
        return done
    recipe = resolved.recipe
    loaded = load_rows(recipe.data, "prompts", recipe.seed)
    if session.dry_run:
        return session.plan([("rows", str(len(loaded.train)), "")])
    run = session.open()
    loud = [{"prompt": str(row.prompt).upper() + "!" * recipe.shout.marks} for row in loaded.train]
    run.write_text("rows.jsonl", "".join(json.dumps(row) + "\\n" for row in loud))
    write_page(run.dir)
    return session.finish(run, {"rows": len(loud)})


def write_page(folder):
    page = folder / "report.html"
    page.write_text("loud")
    return page
''',
}

ADDED = """
import sys
from aligner.methods.catalogue import METHODS, Entry
METHODS["pull"] = Entry("pull_method", "Train", "Pull responses apart.")
METHODS["shout"] = Entry("shout_builder", "Build data", "Make rows loud.")
"""
"""The lines that a new method and a new builder add to the catalogue."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a method and a builder in it."""
    folder = tmp_path_factory.mktemp("added")
    for package, files in (("pull_method", PULL), ("shout_builder", SHOUT)):
        (folder / package).mkdir()
        for name, text in {"__init__.py": "", **files}.items():
            (folder / package / name).write_text(text, encoding="utf-8")
    return folder


def run(place: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(place)}
    return subprocess.run(
        [sys.executable, "-c", ADDED + code, *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )


def aligner(place: Path, *arguments: str, code: int = 0) -> str:
    done = run(place, "from aligner.cli.app import main\nmain()", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_the_command_line_knows_them(place: Path) -> None:
    text = aligner(place, "--help")
    assert "  pull        Pull responses apart." in text
    assert text.index("Build data:") < text.index("  shout  ") < text.index("Train:")
    text = aligner(place, "pull", "--help")
    assert "aligner pull recipe.yaml pull.strength=0.1" in text
    assert "Pull the two responses of a pair apart." in text
    assert "pull_strength" in text
    assert "--loss-table" not in text
    assert "--num-processes" not in aligner(place, "shout", "--help")


def test_its_recipe_is_checked_with_its_rules(place: Path, small_world: Path) -> None:
    given = ["pull", "--model", str(small_world / "model"), "--data", str(small_world / "x.jsonl")]
    text = aligner(place, *given, "pull.strenght=0.1", code=2)
    assert "did you mean `pull.strength`?" in text
    assert "is seven" in aligner(place, *given, "--pull_strength", "7", code=2)
    text = aligner(place, "dpo", *given[1:], "--pull_strength", "1", code=2)
    assert "a setting of `aligner pull`: `pull.strength`" in text
    text = aligner(place, *given, "trainer.packing_strategy=bfd", code=2)
    assert "is a key of the `sft` trainer, not of `pull`" in text


def test_it_trains_and_its_run_says_what_it_is(place: Path, small_world: Path) -> None:
    recipe = {
        "method": "pull",
        "model": {"name_or_path": str(small_world / "model")},
        "data": {"train": str(small_world / "pairs.jsonl"), "eval": 0.2, "max_length": 256},
        "trainer": {"max_steps": 2, "logging_steps": 1, "use_cpu": True},
        "output_dir": "runs/pull",
    }
    (place / "pull.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    text = aligner(place, "pull", "pull.yaml", "--dry-run")
    assert "pull (strength 0.5)" in text
    assert "0.0003" in text
    assert "default of pull" in text
    text = aligner(place, "pull", "pull.yaml")
    assert "report.html" in text
    folder = place / "runs" / "pull"
    resolved = json.loads((folder / "resolved.json").read_text("utf-8"))
    assert resolved["recipe"]["trainer"]["learning_rate"] == 3e-4
    assert resolved["origins"]["trainer.learning_rate"] == "default of pull"
    card = (folder / "final" / "README.md").read_text("utf-8")
    assert "by pulling (strength 0.5)" in card
    assert "| `pull.strength` | `0.5` |" in card
    assert "How far apart" in (folder / "report.html").read_text("utf-8")
    assert (folder / "final" / "model.safetensors").is_file()
    assert "wrote runs/pull/report.html" in aligner(place, "runs", "report", "runs/pull")
    # Done already; nothing is trained again.
    assert "is finished already" in aligner(place, "pull", "pull.yaml", "--resume")


def test_a_builder_builds(place: Path, small_world: Path) -> None:
    rows = place / "prompts.jsonl"
    rows.write_text('{"prompt": "hello"}\n', encoding="utf-8")
    given = ["shout", "--data", str(rows), "--output", "runs/shout", "shout.marks=2"]
    assert "nothing was done" in aligner(place, *given, "--dry-run")
    text = aligner(place, *given)
    assert "runs/shout/rows.jsonl" in text
    assert json.loads((place / "runs/shout/rows.jsonl").read_text("utf-8"))["prompt"] == "HELLO!!"
    assert "is finished already" in aligner(place, *given, "--resume")
    assert "shout   done" in aligner(place, "runs", "list", "runs")
    aligner(place, "runs", "report", "runs/shout")
    assert (place / "runs/shout/report.html").read_text("utf-8") == "loud"


def test_the_reference_of_recipes_has_their_sections(place: Path) -> None:
    done = run(place, "from aligner.config.docs import document\nprint(document())")
    assert done.returncode == 0, done.stderr
    assert "## pull\n\nChosen responses up, rejected ones down." in done.stdout
    assert "| `strength` | number" in done.stdout
    assert "* `shout` (`aligner shout`): `method`" in done.stdout
    assert "| `--pull_strength` | `pull.strength` |" in done.stdout


ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", METHODS)
def test_what_a_folder_says_of_itself_holds(name: str) -> None:
    """A mistake in it would else be an internal error, after hours for some."""
    method = method_of(name)
    assert method.recipe.model_fields["method"].default == name
    for place in (method.run, method.report, *([method.status] if method.status else [])):
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    training = training_of(name)
    if training is None:
        return
    section = method.recipe.model_fields[name].annotation
    assert set(training.settings) <= set(section.model_fields)  # type: ignore[union-attr]
    assert training.trainer_class in CLASSES
    assert {*training.defaults, *training.defaults_with_lora} <= set(trainer_settings(name))
    assert "loss" in training.metrics
    for _, lines in training.charts:
        assert {split for split, _, _ in lines} <= {"train", "eval"}
    if training.run == TrainingMethod.run:
        steps_of(name).load()


OF_MIGRATION = tuple(f"aligner/config/migrate/{name}.py" for name in ("axolotl", "methods", "trl"))
"""Where recipes of other tools become ours."""
OF_FLYWHEEL = ("aligner/methods/flywheel/policies.py", "aligner/methods/flywheel/trainings.py")
"""Where the flywheel says which methods train it."""


@pytest.mark.parametrize(
    ("name", "folder", "others"),
    [
        ("sapo", "methods/sapo", ()),
        # A metric and an entry of its page are called so too, by TRL's name.
        (
            "reward",
            "methods/reward",
            (
                *(f"aligner/methods/rlhf/{name}.py" for name in ("metrics", "recipe", "train")),
                "aligner/methods/api.py",
                *OF_FLYWHEEL,
                *OF_MIGRATION,
                "aligner/config/migrate/llama_factory.py",
                "cli/arena_select.py",
                "aligner/arena/selection/rules.py",
                "aligner/methods/flywheel/selecting.py",
                "aligner/methods/flywheel/status.py",
                "aligner/reports/rollouts.py",
                *(
                    f"aligner/methods/online/{name}.py"
                    for name in (
                        "evaluation",
                        "measures",
                        "read_rounds",
                        "refresh_stage",
                        "report",
                        "rounds",
                        "words",
                    )
                ),
            ),
        ),
        ("rlhf", "methods/rlhf", (*OF_FLYWHEEL, *OF_MIGRATION)),
        ("online", "methods/online", ()),
        ("discover", "methods/discover", ("aligner/endpoints/__init__.py",)),
        ("evolve", "builders/evolve", ()),
        ("mosaic", "builders/mosaic", ("aligner/data/loading.py",)),
        (
            "select",
            "builders/select",
            ("cli/data.py", "cli/arena.py", "aligner/methods/flywheel/status.py"),
        ),
        ("flywheel", "methods/flywheel", ()),
    ],
)
def test_nobody_else_knows_one_by_name(name: str, folder: str, others: tuple[str, ...]) -> None:
    files = [*(ROOT / "aligner").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    found = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if f'"{name}"' in path.read_text(encoding="utf-8")
    }
    strangers = {path for path in found if not path.startswith(f"aligner/{folder}/")}
    assert strangers == {"aligner/methods/catalogue.py", *others}
