"""The JSON Schema of a recipe, for editors: what `docs/recipe.md` tells people, for programs.

It comes from the pydantic sections and from the table of the trainer's fields, so it knows every
key, type, choice and bound. Rules that join several keys are not in it: those are `rules.py` and
what each method says of itself.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core.core_schema import ModelSchema

from aligner.config.docs import text_of
from aligner.config.hints import did_you_mean
from aligner.config.recipe import Recipe, Section, TrainRecipe
from aligner.config.trainer_values import RANGES
from aligner.errors import UsageError
from aligner.methods.catalogue import METHODS, recipes, trainer_fields, trainer_settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_KINDS = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "list": "array",
    "dict": "object",
    "None": "null",
}


def recipe_schema(method: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of a method's recipes, or of all recipes.

    Raises: UsageError for a method that nobody knows.
    """
    if method is not None and method not in METHODS:
        hint = did_you_mean(method, METHODS) or f"name one of {', '.join(METHODS)}"
        raise UsageError(f"no method is called `{method}`", hint)
    wanted = {name: kind for name, kind in recipes().items() if method in (None, name)}
    places, whole = models_json_schema(
        [(kind, "validation") for kind in wanted.values()], schema_generator=_Generator
    )
    references = {name: places[kind, "validation"] for name, kind in wanted.items()}
    head = {"$schema": DIALECT, "title": f"Recipe of aligner{f', {method}' if method else ''}"}
    body = references[method] if method else _by_method(references)
    return {**head, **body, "$defs": whole["$defs"]}


def _by_method(references: dict[str, JsonSchemaValue]) -> dict[str, Any]:
    """A recipe of any method: `method` says which schema holds for the rest."""
    cases = [
        {
            "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
            "then": reference,
        }
        for name, reference in references.items()
    ]
    return {
        "type": "object",
        "properties": {"method": {"enum": list(references), "description": "What to do."}},
        "required": ["method"],
        "allOf": cases,
    }


class _Generator(GenerateJsonSchema):
    """pydantic's generator, with our texts and the trainer's fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Keys are their own titles."""
        return False

    def model_schema(self, schema: ModelSchema) -> JsonSchemaValue:
        """Return the schema of a section, with the text of each key."""
        section: type[Section] = schema["cls"]
        found = super().model_schema(schema)
        for key, inner in found["properties"].items():
            inner["description"] = text_of(section, key)
        if issubclass(section, TrainRecipe):
            text = found["properties"]["trainer"]["description"]
            method = str(section.model_fields["method"].default)
            found["properties"]["trainer"] = {**_trainer(method), "description": text}
        if issubclass(section, Recipe):
            found["required"] = [
                key for key in found.get("required", []) if key not in ("method", "output_dir")
            ]
        return found


def _trainer(method: str) -> JsonSchemaValue:
    """The fields that a recipe of this method may set under `trainer`."""
    fields = trainer_fields(method)
    properties = {key: _field(fields[key]) for key in trainer_settings(method)}
    for key in set(properties) & set(RANGES):
        properties[key]["description"] += f" Allowed: {RANGES[key]}."
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(spec: dict[str, Any]) -> JsonSchemaValue:
    """One field of a trainer. TRL's defaults are left out, since ours differ in places."""
    kinds = spec["type"].split(" | ")
    if "choices" in spec:
        choices = [*spec["choices"], *([None] if "None" in kinds else [])]
        return {"enum": choices, "description": spec["help"]}
    names = [_KINDS[kind] for kind in kinds]
    return {"type": names if len(names) > 1 else names[0], "description": spec["help"]}
