"""The model card of a run's result, `final/README.md`, written from the record alone.

It states what the record holds: data with what was lost on the way, settings, results, versions,
and the command that makes the model again. What no record can know (licence, intended use, limits)
is left out and named as left out. So are times and the name of the run directory: two runs of one
recipe have the same card, byte for byte.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from aligner.config.defaults import DEFAULT, OF_DEVICE, OF_LIBRARIES, is_default, keys_that_matter
from aligner.config.yaml_lines import read_value
from aligner.methods.catalogue import function_of, trainer_of
from aligner.reports.charts import number
from aligner.reports.page import AT_START, held_out_part
from aligner.runs.files import dumps, read_json, write_atomically
from aligner.runs.lineage import lineage

Record = dict[str, Any]

HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
PLACE_FLAGS = ("-o", "--output", "--output_dir", "--output-dir")
PLACE_STARTS = ("output_dir=", *(f"{flag}=" for flag in PLACE_FLAGS))
LOSSES = (
    ("duplicates", "duplicates"),
    ("not_sampled", "not sampled"),
    ("dropped_by_function", "dropped by the mapping function"),
    ("bad", "broken"),
)
FOLDED = "Every other setting of the trainer, as TRL and transformers have it"


def write_model_card(run_dir: Path, manifest: Record) -> None:
    """Write `final/README.md`. `manifest` is the one that is about to be written."""
    final = Path(run_dir) / "final"
    write_atomically(final / "README.md", card_of(Path(run_dir), manifest, final))


def card_of(folder: Path, manifest: Record, model: Path, merged: str = "") -> str:
    """Return the card of a model that a run made. `model`: its folder, `final/` of the run or
    another; `merged`: what is to be said of how an adapter became part of it."""
    resolved = read_json(folder, "resolved.json") or {}
    recipe = resolved.get("recipe", {})
    environment = read_json(folder, "environment.json") or {}
    ancestors = lineage(folder, manifest)
    start = environment.get("working_directory", "")
    adapter = (model / "adapter_config.json").exists()
    sections = [
        f"# {_title(recipe, ancestors)}",
        _opening(recipe, manifest, adapter),
        merged,
        _use_as_scorer(model, recipe, adapter)
        if trainer_of(recipe["method"]).makes_scorer
        else _use(model, recipe, adapter),
        _data(read_json(folder, "data.json")),
        _training(
            recipe,
            resolved.get("origins", {}),
            environment.get("arguments", {}),
            read_json(folder, "weights.json"),
        ),
        _results(
            manifest,
            read_json(folder, "evaluation.json"),
            held_out_part(read_json(folder, "decided.json") or {}),
        ),
        _own_part(recipe["method"], folder),
        _origin(ancestors, start),
        _reproduce(environment, manifest),
        "License, intended use and limits are in no record of training, so they are not stated "
        "here.",
    ]
    text = "\n\n".join(section for section in sections if section)
    return f"{_front_matter(recipe, ancestors, start, adapter)}\n{text}\n"


def _title(recipe: Record, ancestors: list[Record]) -> str:
    """What the model began as, and what was done with it last."""
    base = (
        ancestors[-1]["path"]
        if ancestors[-1]["kind"] == "model"
        else recipe.get("model", {}).get("name_or_path")
    )
    name = re.sub(r"[^\w.-]+", " ", Path(str(base)).name).strip()
    return f"{name}: {trainer_of(recipe['method']).title}"


def _front_matter(recipe: Record, ancestors: list[Record], start: str, adapter: bool) -> str:
    """Metadata as the hub reads it. A base model on a local disk has no name there, so it is left
    out."""
    method = recipe["method"]
    is_classifier = trainer_of(method).has_head(recipe[method])
    task = "text-classification" if is_classifier else "text-generation"
    content: Record = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": task}
    base = ancestors[-1]["path"] if ancestors[-1]["kind"] == "model" else ""
    if HUB_ID.match(base) and not (Path(start) / base).exists():
        content |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    content["tags"] = ["aligner", method, *(["lora"] if adapter else [])]
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _opening(recipe: Record, manifest: Record, adapter: bool) -> str:
    model = recipe.get("model", {})
    kind = "A LoRA adapter for" if adapter else "A fine-tuned version of"
    made_by = trainer_of(recipe["method"])
    note = made_by.card_note(recipe[manifest["method"]])
    return (
        f"{kind} {_code(model.get('name_or_path'))}, made with aligner {manifest['aligner']} by "
        f"{made_by.title}{f' ({note})' if note else ''}. "
        "The whole record, with curves and sample answers, is `report.html` in the run directory."
    )


PLAIN_SCORER = """\
or, with transformers alone, which reads the head at the last token that is not the padding token:

```python
{imports}

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
tokenizer.pad_token = {pad}
model = AutoModelForSequenceClassification.from_pretrained({base}, num_labels={outputs})
model.config.pad_token_id = tokenizer.pad_token_id{adapted}
```"""


def _plain_scorer(final: Path, recipe: Record, adapter: bool) -> str:
    """How to load a model with a head without us; nothing for a kind that is read in another
    way."""
    card = (
        read_value((final / "reward_model.yaml").read_text("utf-8"))
        if (final / "reward_model.yaml").exists()
        else {}
    )
    if card.get("kind") not in ("bradley_terry", "regression") or "pad_token" not in card:
        return ""
    imports = "from transformers import AutoModelForSequenceClassification, AutoTokenizer"
    return "\n\n" + PLAIN_SCORER.format(
        imports=f"from peft import PeftModel\n{imports}" if adapter else imports,
        pad=dumps(card["pad_token"]),
        base=dumps(_base_of(final)) if adapter else '"path/to/this/folder"',
        outputs=len(card.get("attributes", [None])),
        adapted='\nmodel = PeftModel.from_pretrained(model, "path/to/this/folder")'
        if adapter
        else "",
    )


def _base_of(final: Path) -> str:
    return str(
        json.loads((final / "adapter_config.json").read_text("utf-8")).get(
            "base_model_name_or_path"
        )
    )


def _use_as_scorer(final: Path, recipe: Record, adapter: bool) -> str:
    code = recipe.get("model", {}).get("trust_remote_code")
    return (
        "## How to use\n\n```python\nfrom aligner.reward_models.catalogue import load_scorer\n\n"
        f'scorer = load_scorer("path/to/this/folder"{", trust_remote_code=True" if code else ""})\n'
        'print(scorer.score(["a prompt"] * 2, ["an answer", "another answer"]))\n```\n\n'
        "or, in a terminal, `aligner score --reward-model path/to/this/folder --data rows.jsonl"
        f"{' --trust-remote-code' if code else ''}`. "
        "What the numbers mean stands in "
        f"`reward_model.yaml`.{_plain_scorer(final, recipe, adapter)}"
    )


PLAIN_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained({base})
if len(tokenizer) > model.get_input_embeddings().num_embeddings:
    model.resize_token_embeddings(len(tokenizer))  # the adapter holds the rows of the new tokens
model = PeftModel.from_pretrained(model, "path/to/this/folder")
generate = pipeline("text-generation", model, tokenizer=tokenizer)
"""


def _use(final: Path, recipe: Record, adapter: bool) -> str:
    """How to load it; with messages where the tokenizer carries a chat template."""
    config = final / "tokenizer_config.json"
    chat = (final / "chat_template.jinja").exists() or (
        config.exists() and '"chat_template"' in config.read_text("utf-8")
    )
    prompt = '[{"role": "user", "content": "..."}]' if chat else '"..."'
    peft = (
        "# the pipeline loads the base model named in adapter_config.json; it needs `pip install "
        "peft`\n"
        if adapter
        else ""
    )
    load = (
        f'from transformers import pipeline\n\n{peft}generate = pipeline("text-generation", '
        '"path/to/this/folder")\n'
    )
    if adapter and recipe.get("model", {}).get("new_tokens"):
        load = PLAIN_ADAPTER.format(base=dumps(_base_of(final)))
    return (
        f"## How to use\n\n```python\n{load}"
        f"print(generate({prompt}, max_new_tokens=256))\n```\n\n"
        "or, in a terminal, `aligner generate path/to/this/folder`."
    )


def _data(data: Any) -> str:
    if not data:
        return ""
    rows = []
    for source in data.get("sources", []):
        losses = [f"{source[key]:,} {name}" for key, name in LOSSES if source.get(key)]
        counts = (f"{source.get(key, 0):,}" for key in ("rows_read", "to_train", "to_eval"))
        lost = ", ".join(losses) or "none"
        rows.append((_code(source["path"]), source.get("format", ""), *counts, lost))
    text = "## Data\n\n" + _table(
        ("source", "format", "rows read", "trained on", "held out", "lost"), rows
    )
    splits = []
    keys = ("rows", "tokens", "trained_tokens", "too_long_dropped", "truncated_tokens")
    for name, split in data.get("splits", {}).items():
        if split.get("rows"):
            splits.append((_code(name), *(f"{split.get(key, 0):,}" for key in keys)))
    if splits:
        text += "\n\n" + _table(
            ("split", "rows", "tokens", "trained tokens", "too long, dropped", "tokens cut off"),
            splits,
        )
    return text


def _training(recipe: Record, origins: Record, arguments: Record, weights: Any) -> str:
    """The settings that decide the result, then what was trained; every other setting of the
    trainer is folded away below them."""
    settings = _settings(recipe)
    first = [key for key in keys_that_matter(recipe) if key in settings]
    folded = [key for key in settings if origins.get(key) in OF_LIBRARIES and key not in first]
    shown = [key for key in dict.fromkeys([*first, *settings]) if key not in folded]
    rows = [_setting(key, settings[key], origins) for key in shown]
    rows += [
        (_code(f"trainer.{key}"), _code(dumps(arguments[key])), AT_START)
        for key in OF_DEVICE
        if key in arguments
    ]
    if weights:
        rows.append(("weights trained", f"{weights['trained']:,} of {weights['total']:,}", ""))
        rows += [
            (f"trained in {_code(place)}", f"{number:,}", "")
            for place, number in weights["places"].items()
        ]
    text = "## Training\n\n" + _table(("setting", "value", "from"), rows)
    if not folded:
        return text
    rest = _table(
        ("setting", "value", "from"),
        [_setting(key, settings[key], origins) for key in folded],
    )
    return f"{text}\n\n<details><summary>{FOLDED}</summary>\n\n{rest}\n\n</details>"


def _settings(recipe: Record) -> Record:
    """The method's own settings, the trainer's, and the adapter's, by dotted key; what is not set
    is left out."""
    method = recipe["method"]
    model, data = recipe.get("model", {}), recipe.get("data", {})
    own = trainer_of(method).settings_read(recipe[method])
    settings = {
        "seed": recipe.get("seed"),
        "data.max_length": data.get("max_length"),
        "data.on_too_long": data.get("on_too_long"),
        "model.dtype": model.get("dtype"),
        "model.quantization": model.get("quantization"),
        **{f"model.lora.{key}": value for key, value in (model.get("lora") or {}).items()},
        **{f"{method}.{key}": value for key, value in own.items()},
        **{f"trainer.{key}": value for key, value in recipe.get("trainer", {}).items()},
        "launch.num_processes": recipe.get("launch", {}).get("num_processes"),
    }
    return {key: value for key, value in settings.items() if value is not None}


def _setting(key: str, value: Any, origins: Record) -> tuple[str, ...]:
    """A row of the table. Where a given value stands in a file of this machine is not told."""
    origin = origins.get(key, DEFAULT)
    if origin in ("objective=", "scorer=", "rows="):
        origin = f"given in Python, {_code(origin)}"
    elif not is_default(origin):
        origin = "the recipe"
    return _code(key), _code(dumps(value)), origin


def _results(manifest: Record, evaluation: Any, held_out: str) -> str:
    rows = [(_code(key), _shown(value)) for key, value in manifest["results"].items()]
    text = "## Results\n\n" + (
        _table(("metric", "value"), rows) if rows else "No metric was recorded."
    )
    if held_out and any(key.startswith("eval/") for key in manifest["results"]):
        text = f"{text}\n\n{held_out}"
    if not evaluation:
        return text
    metrics = list(dict.fromkeys(metric for entry in evaluation for metric in entry["metrics"]))
    lines = []
    for entry in evaluation:
        cells = [_shown(entry["metrics"].get(metric, "")) for metric in metrics]
        lines.append((entry["name"], *cells))
    return f"{text}\n\n{_table(('model', *metrics), lines)}"


def _own_part(method: str, folder: Path) -> str:
    """What the method adds."""
    part = trainer_of(method).card_part
    return str(function_of(part)(folder)) if part else ""


def _origin(ancestors: list[Record], start: str) -> str:
    steps = [f"this {ancestors[0]['method']} run"]
    for entry in ancestors[1:]:
        kind = f"{entry['method']} run" if entry["kind"] == "run" else entry["kind"]
        steps.append(f"{kind} {_code(entry['path'].removeprefix(f'{start}/'))}")
    return "## Lineage\n\n" + " → ".join(reversed(steps))


def _reproduce(environment: Record, manifest: Record) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in environment.get("versions", {}).items()
    )
    git = environment.get("git")
    changed = " with the uncommitted changes in `code.diff`" if git and git["dirty"] else ""
    lines = [
        f"```sh\n{_without_place(environment.get('command', ''))}\n```",
        f"* recipe: `recipe.yaml` of the run, hash `{manifest['recipe_hash']}`",
        f"* data fingerprint: `{manifest['data_fingerprint']}`",
        f"* versions: {versions}",
        *([f"* git commit: `{git['commit']}`{changed}"] if git else []),
    ]
    return "## Reproduce\n\n" + "\n".join([lines[0], "", *lines[1:]])


def _without_place(command: str) -> str:
    """The command without what says where the run lies and whether it was started before: the model
    depends on neither."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    kept: list[str] = []
    for place, word in enumerate(words):
        follows = place > 0 and words[place - 1] in PLACE_FLAGS
        if not (
            follows
            or word in (*PLACE_FLAGS, "--resume", "--overwrite")
            or word.startswith(PLACE_STARTS)
        ):
            kept.append(word)
    return shlex.join(kept)


def _shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return value if isinstance(value, str) else dumps(value)


def _code(value: Any) -> str:
    """Text in backticks, with whatever would end them taken out."""
    text = " ".join(str(value).split()).replace("`", "'")
    return f"`{text}`" if text else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return (
        " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;" if "`" not in text else "<")
    )
