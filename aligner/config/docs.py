"""`docs/recipe.md`, generated: `python -m aligner.config.docs > docs/recipe.md`. A test keeps the
file equal.

Keys, types, bounds, defaults and texts come from the schema; names of losses, strategies and flags
from their tables.
"""

from __future__ import annotations

import ast
import functools
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aligner.config import defaults, trainer_keys
from aligner.config import recipe as recipe_module
from aligner.config.choices import STRATEGIES
from aligner.config.flag_table import flag_groups
from aligner.config.introspect import section_at
from aligner.config.loss_names import LOSSES
from aligner.config.recipe import Section
from aligner.config.trainer_values import MOST, RANGES, plain_number
from aligner.methods.catalogue import command_of, recipes, training_of, trainings

INTRO = """\
# The recipe

<!-- Generated from the schema: python -m aligner.config.docs > docs/recipe.md -->

A recipe is a YAML file. `aligner sft RECIPE`, `aligner dpo RECIPE`, `aligner mosaic RECIPE` and so
on run it; `RECIPE` is a file, or the name of a shipped one (`aligner recipes list`).

```yaml
method: dpo
model: {name_or_path: Qwen/Qwen3-0.6B, lora: {r: 16, lora_alpha: 32}}
data: {train: pairs.jsonl, eval: 0.05}
dpo: {beta: 0.1}
trainer: {learning_rate: 5e-6, num_train_epochs: 1}
output_dir: runs/mine
```

* Unknown keys, keys given twice and wrong types are errors. All of them are reported at once, with
  file, line and key.
* `key=value` after the recipe changes a value: `model.lora.r=8 trainer.learning_rate=1e-5`. The
  value is read as YAML, lists are replaced whole, sections are made as needed.
  `data.train.max_rows=100` sets a key of the only source.
* Flags set keys as well; the names are those of TRL, with `_` or `-`. They are listed at the end.
* Flags and `key=value` beat the recipe. `resolved.json` in the run directory says where every value
  came from, those that nobody wrote included: `default`, or in `trainer` whose default it is
  (`default of dpo`, `default of aligner`, `default of TRL`, `default of transformers`). The hash of
  a recipe is of all of them: writing a default out does not change it, another default does.
* A key is a text, as it stands there. Aliases (`&name`, `*name`) and merged keys (`<<`) may be
  used; with all of them written out a recipe has at most 1,000,000 characters and 40 levels.
* Numbers may be written `5e-6`; they are finite, and what is counted ends at 2,147,483,647.
  Booleans are `true` and `false`; `no` is a text. Relative paths are taken from the working
  directory.
* Without `output_dir` the run goes to `runs/`, named after the recipe or the model.
* `aligner recipes schema > recipe.schema.json` writes all of this as a JSON Schema. An editor with
  a YAML language server completes keys and marks mistakes once the first line of a recipe is
  `# yaml-language-server: $schema=recipe.schema.json`. Rules between several keys are checked by
  the command alone.
"""

FILLED_IN = {"method": "the command", "output_dir": "`runs/...`"}
"""Keys that a resolved recipe always has and that a file may leave out."""

_WORDS = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}
_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def document() -> str:
    """The whole page."""
    losses = _names(
        "Objectives of `dpo.loss`", "The names are TRL's where TRL has the objective.", LOSSES
    )
    strategies = _names(
        "Strategies of `launch.strategy`",
        "Or the path of a configuration file of accelerate's.",
        STRATEGIES,
    )
    parts = [INTRO, *_sections(), losses, strategies, _trainer(), _flags()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _sections() -> Iterator[str]:
    yield "## Top level\n\n" + _table(recipe_module.TrainRecipe)
    others = "Recipes that train nothing have fewer keys:\n\n"
    for name, recipe in recipes().items():
        if training_of(name) is None:
            keys = ", ".join(f"`{key}`" for key in recipe.model_fields)
            others += f"* `{name}` (`aligner {command_of(name)}`): {keys}\n"
    yield others + "\n"
    titled: tuple[tuple[str, type[Section]], ...] = (
        ("model", recipe_module.Model),
        ("model.lora", recipe_module.Lora),
        ("data", recipe_module.Data),
        ("data.train[] and data.eval[]: a source", recipe_module.Source),
        ("data.mosaic", recipe_module.Mosaic),
        ("data.mosaic.strategies and mosaic.strategies", recipe_module.Strategies),
        *((key, section) for key, section in _method_sections()),
        ("early_stopping", recipe_module.EarlyStopping),
        ("eval", recipe_module.Eval),
        ("eval.arena", recipe_module.EvalArena),
        ("launch", recipe_module.Launch),
        ("generation", recipe_module.Generation),
        ("report", recipe_module.Report),
        ("endpoint and generation.endpoint", recipe_module.Endpoint),
        ("endpoint.budget and generation.endpoint.budget", recipe_module.Budget),
    )
    for title, section in titled:
        text = " ".join((section.__doc__ or "").split())
        yield f"## {title}\n\n{text}\n\n{_table(section)}"


def _method_sections() -> Iterator[tuple[str, type[Section]]]:
    """The section of each method, and those below it that are its own."""
    for method, recipe in recipes().items():
        section = section_at(recipe, (method,))
        assert section is not None, "a method has a section of its name"
        yield method, section
        yield from _own_sections(method, section)


def _own_sections(place: str, section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """The sections below a section, but for those that several methods have."""
    for key in section.model_fields:
        inner = section_at(section, (key,))
        if inner is not None and inner.__module__ != recipe_module.__name__:
            yield f"{place}.{key}", inner
            yield from _own_sections(f"{place}.{key}", inner)


@functools.cache
def _texts(module: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the docstring below the field."""
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text("utf-8"))
    texts: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts[node.name] = {}
        for field, text in zip(node.body, node.body[1:]):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[node.name][field.target.id] = str(text.value.value)
    return texts


def text_of(section: type[Section], key: str) -> str:
    """What the schema says about a key. Every key is documented; a test asks for each of them."""
    for owner in section.__mro__:
        if text := _texts(owner.__module__).get(owner.__name__, {}).get(key):
            return " ".join(text.split())
    raise AssertionError(f"{section.__name__}.{key} has no docstring")


def _table(section: type[Section]) -> str:
    rows = [
        f"| `{name}` | {_cell(_type(field.annotation, field.metadata))} | "
        f"{FILLED_IN.get(name) or _default(field)} "
        f"| {_cell(text_of(section, name))} |"
        for name, field in section.model_fields.items()
    ]
    return "\n".join(["| Key | Value | Default | |", "| --- | --- | --- | --- |", *rows]) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(hint: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        inner = [
            item
            for extra in arguments[1:]
            for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])
        ]
        return _type(arguments[0], [*inner, *metadata])
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_type(item, metadata) for item in arguments if item is not type(None))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, Section):
        return "sources" if hint is recipe_module.Source else "section"
    return _WORDS[hint] + _bounds(metadata if hint in (int, float) else ())


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    found = [
        f"{sign} {plain_number(bound)}"
        for name, sign in _BOUNDS
        for item in metadata
        if (bound := getattr(item, name, None))
        not in (None, MOST)  # that counts end somewhere is said above
    ]
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "absent"
    if isinstance(default, Section):
        return "its own defaults"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _names(title: str, intro: str, table: dict[str, str]) -> str:
    rows = [f"| `{name}` | {text} |" for name, text in table.items()]
    return "\n".join([f"## {title}\n\n{intro}\n", "| Name | |", "| --- | --- |", *rows])


def _trainer() -> str:
    classes = ", ".join(
        f"`{method.trainer_class}` for `{name}`" for name, method in trainings().items()
    )
    head = (
        "## trainer\n\n"
        f"Every field of the trainer's own configuration class: {classes}. Their documentation is "
        "that of TRL and\n"
        "transformers; keys and types are checked before anything is loaded. `warmup_steps` below "
        "1 is a share of all\n"
        "steps. These fields are set elsewhere:\n"
    )
    rows = [f"| `{key}` | {text} |" for key, text in trainer_keys.RESERVED.items()]
    ranges = [f"| `{key}` | {allowed} |" for key, allowed in RANGES.items()]
    bounds = (
        "\nNumbers have bounds, beyond which the trainers break or nothing sensible is trained. "
        "Words, arguments of\n"
        "optimizers and schedulers (`optim_args`, `lr_scheduler_kwargs`), and the packages that a "
        "key needs are checked\n"
        "too, also before anything is loaded; what only the device knows is tried before rows are "
        "tokenized.\n"
    )
    first = ["| Field | Instead |", "| --- | --- |", *rows]
    numbers = ["| Field | Number |", "| --- | --- |", *ranges]
    return "\n".join([head, *first, bounds, *numbers, _defaults()])


def _defaults() -> str:
    """The defaults that decide the result most, and those that are not the libraries'."""
    found = {name: defaults.defaults(_bare(name)) for name in trainings()}
    own = [key for method in trainings().values() for key in method.defaults]
    keys = dict.fromkeys([*defaults.MATTERS, *own, *defaults.OF_ALIGNER])
    head = (
        "\n### What is filled in\n\n"
        "Every field that a recipe leaves out, with what TRL and transformers do then or with what "
        "we do instead. Here\n"
        "are those that decide the result most and those that are ours (in bold); `resolved.json` "
        "has all of them. With\n"
        "`data.eval`, `eval_strategy` is `steps`; how often follows from what evaluations and "
        "checkpoints cost, a tenth of the\n"
        "run at the most ([how](running.md#beside-the-training)). With `early_stopping` it is a "
        "tenth, and both fall together.\n"
        "What only the device, the rows or the loaded model can tell is set "
        "when the run starts and written\n"
        "to `environment.json` then: " + ", ".join(f"`{key}`" for key in defaults.LATE) + ".\n"
    )
    rows = [f"| Field | {' | '.join(found)} |", f"| --- | {'--- | ' * len(found)}".rstrip()]
    for key in keys:
        cells = [_default_cell(method, key, table) for method, table in found.items()]
        rows.append(f"| `{key}` | {' | '.join(cells)} |")
    return "\n".join([head, *rows])


def _default_cell(method: str, key: str, table: dict[str, defaults.Default]) -> str:
    if key not in table:
        return "by the rows"
    value, origin = table[key]
    text = f"`{value if isinstance(value, str) else json.dumps(value)}`"
    text = text if origin in defaults.OF_LIBRARIES else f"**{text}**"
    under_lora = trainings()[method].defaults_with_lora.get(key)
    return text if under_lora is None else f"{text}, with `model.lora` **`{under_lora}`**"


def _bare(method: str) -> recipe_module.TrainRecipe:
    """A recipe that says nothing but what it must."""
    recipe = recipes()[method].model_validate(
        {"output_dir": "", "model": {"name_or_path": ""}, "data": {"train": ""}}
    )
    assert isinstance(recipe, recipe_module.TrainRecipe)
    return recipe


def _flags() -> str:
    parts = [
        "## Flags\n\nEvery field of the trainer is a flag of its own name, and so is every dotted "
        "key "
        "(`--model.lora.r 8`).\nThese are the ones that help screens show.\n",
        "| Flag | Key | |",
        "| --- | --- | --- |",
    ]
    for flags in flag_groups().values():
        parts += [
            f"| `--{flag.name}` | {f'`{flag.key}`' if flag.key else ''} | {_cell(flag.help)} |"
            for flag in flags
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
