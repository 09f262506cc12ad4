"""What is about to run, as rows for the screen: (what, value, where the value came from)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aligner.config.defaults import is_default, keys_that_matter, trainer_value

if TYPE_CHECKING:
    from aligner.config.load import Resolved
    from aligner.config.recipe import Model, Source, TrainRecipe

Rows = list[tuple[str, str, str]]

SHOWN_ABOVE = ("method", "output_dir", "model.name_or_path")


def summary_rows(resolved: Resolved) -> Rows:
    """The headline first, then what decides the result most and every value that is not a default,
    with its origin."""
    return [*headline(resolved), *settings_rows(resolved)]


def headline(resolved: Resolved) -> Rows:
    """What is trained, on what, in which steps, and where the result goes."""
    recipe = resolved.recipe
    return [
        ("method", _method(recipe), ""),
        ("model", _model(recipe.model), resolved.origins.get("model.name_or_path", "")),
        ("data", ", ".join(source_text(source) for source in recipe.data.train), ""),
        ("held out", _held_out(recipe), ""),
        ("batch", _batch(recipe), ""),
        ("output", recipe.output_dir, resolved.origins.get("output_dir", "")),
    ]


def settings_rows(resolved: Resolved) -> Rows:
    """What decides the result most, default or not, and every other value that is not a
    default."""
    recipe = resolved.recipe.model_dump(mode="json")
    values, origins = _flatten(recipe), resolved.origins
    given = {key for key, origin in origins.items() if not is_default(origin)}
    wanted = given | set(keys_that_matter(recipe))
    return [
        (f"  {key}", _short(values.get(key)), _origin(origins, key))
        for key in sorted(wanted)
        if key not in SHOWN_ABOVE and not key.startswith("data.train")
    ]


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


def _method(recipe: TrainRecipe) -> str:
    section = getattr(recipe, recipe.method)
    if recipe.method == "sft":
        return f"sft (loss on {section.loss_on})"
    if recipe.method == "reward":
        loss = f", {section.loss} loss" if section.loss != "plain" else ""
        return f"reward ({section.kind}{loss})"
    loss = (
        section.loss
        if isinstance(section.loss, str)
        else " + ".join(f"{w:g} {name}" for name, w in section.loss.items())
    )
    return f"{recipe.method} ({loss}, beta {section.beta:g})"


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


def source_text(source: Source) -> str:
    """A source in a line."""
    extra = [f"weight {source.weight:g}"] if source.weight != 1 else []
    extra += [f"at most {source.max_rows} rows"] if source.max_rows else []
    return f"{source.path} ({', '.join(extra)})" if extra else source.path


def _held_out(recipe: TrainRecipe) -> str:
    held_out = recipe.data.eval
    if held_out is None:
        return "nothing"
    if isinstance(held_out, float):
        return f"{held_out:.1%} of the training rows"
    return ", ".join(source_text(source) for source in held_out)


def _batch(recipe: TrainRecipe) -> str:
    """The arithmetic of one optimizer step, spelled out."""
    per_device = int(trainer_value(recipe, "per_device_train_batch_size"))
    accumulation = int(trainer_value(recipe, "gradient_accumulation_steps"))
    processes = recipe.launch.num_processes
    total = per_device * accumulation * processes
    count = "1 process" if processes == 1 else f"{processes} processes"
    return f"{per_device} per device x {accumulation} accumulated x {count} = {total} rows a step"
