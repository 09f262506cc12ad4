"""Every recipe on disk: valid, headed, listed, and with a run line and an example that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from aligner.config.flags import parse_arguments
from aligner.config.load import Resolved, load_recipe
from aligner.config.recipe import TrainRecipe
from aligner.config.shipped import find_shipped, markdown_table, recipe_text, shipped_recipes
from aligner.errors import RecipeError
from aligner.methods.catalogue import command_of
from aligner.methods.flywheel.trainings import check_trainings
from aligner.models.files import read_chat_template

FOLDER = Path(__file__).parents[2] / "recipes"
PATHS = sorted(FOLDER.rglob("*.yaml"))
NAMES = [path.relative_to(FOLDER).with_suffix("").as_posix() for path in PATHS]


def run(line: str) -> Resolved:
    """Resolve a command line such as `aligner dpo tiny/dpo dpo.beta=0.05`."""
    program, method, *rest = shlex.split(line)
    assert program == "aligner"
    if method == "data":  # a group of commands, which the method is one of
        method, *rest = rest
    elif method == "arena":
        assert rest[0] == "battle"
        rest = rest[1:]
    parsed = parse_arguments(rest, method)
    return load_recipe(method, parsed.ref, parsed.overrides, parsed.flags)


def header(name: str) -> dict[str, str]:
    """The labelled lines of a recipe's comment: Run, Change, ..."""
    text = recipe_text(name)
    return dict(re.findall(r"^# (\w+) {2,}(.+)$", text, re.MULTILINE))


def test_the_recipes_are_found() -> None:
    assert len(NAMES) >= 9
    assert [recipe.name for recipe in shipped_recipes()] == sorted(NAMES)
    assert {"tiny/sft", "tiny/dpo", "tiny/sft-qlora"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_valid_for_the_method_that_it_names(name: str) -> None:
    recipe = find_shipped(name)
    assert recipe is not None
    resolved = load_recipe(recipe.method, FOLDER / f"{name}.yaml")
    assert resolved.recipe.output_dir.startswith("runs/")
    assert resolved.origins["output_dir"].endswith(tuple("0123456789")), (
        "output_dir is written in the file"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_for_and_how_it_is_run(name: str) -> None:
    recipe = find_shipped(name)
    assert recipe is not None
    assert recipe.summary.endswith(".")
    lines = header(name)
    assert lines["Hardware"]
    assert lines["Run"] == f"aligner {command_of(recipe.method)} {name}"
    assert lines["Change"].startswith(f"{lines['Run']} ")


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_in_a_recipe_work(name: str) -> None:
    lines = header(name)
    base = run(lines["Run"])
    assert run(lines["Change"]).recipe != base.recipe
    for label in ("Before", "Next"):
        for command in re.findall(
            r"aligner (?:sft|dpo|reward|rlhf) [\w./-]+", lines.get(label, "")
        ):
            run(command)
    assert lines.get("Yours", f"aligner recipes copy {name}") == f"aligner recipes copy {name}"


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("tiny/")])
def test_a_recipe_stands_in_the_folder_of_its_method(name: str) -> None:
    recipe = find_shipped(name)
    assert recipe is not None
    assert name.split("/")[0] == recipe.method


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_template_of_a_recipe_is_there(name: str) -> None:
    recipe = find_shipped(name)
    assert recipe is not None
    model = getattr(load_recipe(recipe.method, name).recipe, "model", None)
    if model is not None and model.chat_template is not None:
        assert "add_generation_prompt" in read_chat_template(model.chat_template)
        if model.chat_template == "chatml":  # no base model knows its marks
            assert {"<|im_start|>", "<|im_end|>"} <= set(model.new_tokens)
            assert model.eos_token == "<|im_end|>"


@pytest.mark.parametrize("name", [name for name in NAMES if "flywheel" in name])
def test_the_trainings_of_a_flywheel_are_valid(name: str) -> None:
    check_trainings(load_recipe("flywheel", name))


def test_no_two_recipes_share_a_run_directory() -> None:
    places = [
        load_recipe(recipe.method, recipe.name).recipe.output_dir for recipe in shipped_recipes()
    ]
    assert len(set(places)) == len(places)


def test_a_recipe_that_starts_from_a_run_names_the_run_of_another() -> None:
    loaded = [load_recipe(recipe.method, recipe.name).recipe for recipe in shipped_recipes()]
    places = {f"{recipe.output_dir}/final" for recipe in loaded}
    models = [recipe.model.name_or_path for recipe in loaded if isinstance(recipe, TrainRecipe)]
    starts = {model for model in models if model.startswith("runs/")}
    assert starts
    assert starts <= places


def test_the_table_in_the_readme_is_the_folder() -> None:
    """When this fails: `python -m aligner.config.shipped` prints the table."""
    assert markdown_table() in (FOLDER / "README.md").read_text("utf-8")


def test_a_name_is_known_with_and_without_its_ending() -> None:
    assert find_shipped("tiny/dpo") == find_shipped("tiny/dpo.yaml")
    assert find_shipped("tiny/nothing") is None
    with pytest.raises(RecipeError, match="did you mean `tiny/dpo`"):
        recipe_text("tiny/dop")
