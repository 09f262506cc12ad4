"""What is about to run, as rows for the screen: (what, value, where the value came from)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.defaults import is_default, keys_that_matter, trainer_value
from aligner.methods.catalogue import method_of, training_of

if TYPE_CHECKING:
    from aligner.config.load import Resolved
    from aligner.config.recipe import Model, TrainRecipe

Rows = list[tuple[str, str, str]]

SHOWN_ABOVE = ("method", "output_dir", "model.name_or_path")


def summary_rows(resolved: Resolved) -> Rows:
    """The headline first, then what decides the result most and every value that is not a default,
    with its origin."""
    return [*headline(resolved), *_settings_rows(resolved)]


def headline(resolved: Resolved) -> Rows:
    """What is done with what, and where the result goes."""
    recipe, origins = resolved.recipe, resolved.origins
    method = training_of(recipe.method)
    if method is None:
        rows = method_of(recipe.method).summary(recipe)
    else:
        rows = _training_rows(recipe, method.in_short(getattr(recipe, recipe.method)))
    rows += [("output", recipe.output_dir, "output_dir")]
    return [(what, value, origins.get(key, "")) for what, value, key in rows]


def _training_rows(recipe: TrainRecipe, in_short: str) -> Rows:
    """What is trained, on what, in which steps; with the key of each value whose origin counts."""
    return [
        ("method", f"{recipe.method} ({in_short})" if in_short else recipe.method, ""),
        ("model", _model(recipe.model), "model.name_or_path"),
        ("data", recipe.data.in_short(), ""),
        ("held out", _held_out(recipe), ""),
        ("batch", _batch(recipe), ""),
    ]


def _settings_rows(resolved: Resolved) -> Rows:
    """What decides the result most, default or not, and every other value that is not a
    default."""
    recipe = resolved.recipe.model_dump(mode="json")
    values, origins = _flatten(recipe), resolved.origins
    given = {key for key, origin in origins.items() if not is_default(origin)}
    wanted = given | set(keys_that_matter(recipe))
    return [
        (f"  {key}", _short(values.get(key)), _origin(origins, key))
        for key in sorted(wanted)
        if key not in SHOWN_ABOVE
        and not key.startswith("data.train")
        and not _is_of_sections(values.get(key))
    ]


def all_rows(resolved: Resolved) -> Rows:
    """Every value of the recipe with its origin, defaults included."""
    values, origins = _flatten(resolved.recipe.model_dump(mode="json")), resolved.origins
    leaves = (key for key, value in values.items() if not isinstance(value, dict) or not value)
    return [(f"  {key}", _short(values[key]), _origin(origins, key)) for key in leaves]


def _is_of_sections(value: object) -> bool:
    """A list of sections does not fit a line; the headline names them."""
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _origin(origins: dict[str, str], key: str) -> str:
    """Where a value came from; a section that was given as a whole answers for its parts."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, "default")


def _flatten(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat[f"{prefix}{key}"] = value
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
    return flat


def _short(value: object, width: int = 70) -> str:
    text = str(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _model(model: Model) -> str:
    parts = [model.name_or_path]
    if model.quantization != "none":
        parts.append(f"{model.quantization} base")
    parts.append(
        f"LoRA r={model.lora.r} alpha={model.lora.lora_alpha}"
        if model.lora
        else "all weights trained"
    )
    return ", ".join(parts)


def _held_out(recipe: TrainRecipe) -> str:
    held_out = recipe.data.eval
    if held_out is None:
        return "nothing"
    if isinstance(held_out, float):
        return f"{held_out:.1%} of the training rows"
    if isinstance(held_out, int):
        return f"{held_out:,} of the training rows"
    return ", ".join(source.in_short() for source in held_out)


def _batch(recipe: TrainRecipe) -> str:
    """The arithmetic of one optimizer step, spelled out."""
    per_device = int(trainer_value(recipe, "per_device_train_batch_size"))
    accumulation = int(trainer_value(recipe, "gradient_accumulation_steps"))
    processes = recipe.launch.num_processes
    total = per_device * accumulation * processes
    count = "1 process" if processes == 1 else f"{processes} processes"
    return f"{per_device} per device x {accumulation} accumulated x {count} = {total} rows a step"
