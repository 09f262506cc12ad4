"""The files of a model: its folder, the base of its adapter, its chat template. Imports nothing
heavy.

A recipe's model is checked here before torch is loaded: a folder that is not there, is unfinished,
holds no weights, or holds them as pickles (which can run code when they are read) is refused with
what to do.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aligner.config.recipe import Model
from aligner.config.yaml_lines import text_of
from aligner.errors import RecipeError
from aligner.models.folder_kinds import (
    CONFIG_FILE,
    check_files,
    check_sizes,
    read_object,
    weights_header,
    what_else,
)
from aligner.models.gguf import check_gguf, gguf_file, source_of
from aligner.models.run_weights import check_run_weights
from aligner.models.shards import check_shards

HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
ADAPTER_FILE = "adapter_config.json"
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The plain form for base models that have none of their own: no system message is added."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


def check_model_path(model: Model, where: str = "model.name_or_path") -> None:
    """Refuse a model folder or chat template that cannot be loaded, without importing anything
    heavy.

    Raises: RecipeError naming what is wrong, with the key `where`. A name that can be a hub id is
    left to the hub.
    """
    _check_folder(model.name_or_path, where)
    if model.chat_template is not None:
        read_chat_template(model.chat_template)


def check_tokenizer_path(model: Model, where: str) -> None:
    """Refuse what `check_model_path` does, but for a folder that holds a tokenizer and no
    weights."""
    path = Path(model.name_or_path).expanduser()
    if (
        has_tokenizer(model.name_or_path)
        and path.is_dir()
        and gguf_file(model.name_or_path) is None
    ):
        check_files(path, where)
        if model.chat_template is not None:
            read_chat_template(model.chat_template)
    else:
        check_model_path(model, where)


def has_tokenizer(name: str) -> bool:
    """Say whether a folder holds a tokenizer of its own."""
    return gguf_file(name) is not None or any(
        (Path(name).expanduser() / file).is_file() for file in TOKENIZER_FILES
    )


def _check_folder(name: str, where: str) -> None:
    path = Path(name).expanduser()
    if (gguf := gguf_file(name)) is not None:
        check_gguf(gguf, where)
    elif path.is_dir():
        _check_weights(path, where)
        check_files(path, where)
        adapter = adapter_config(name, where)
        check_shards(path, where, is_adapter=adapter is not None)
        check_run_weights(path, where)
        if adapter is not None:
            _check_base(path, adapter, where)
        else:
            check_sizes(path, where)
    elif path.exists():
        raise RecipeError(f"{where}: {path} is a file", "name the folder that holds the model")
    elif not HUB_ID.match(name) or (path.parent.is_dir() and "/" in name):
        raise RecipeError(
            f"{where}: there is no folder {path}{_is_unfinished_run(path)}",
            f"check the path (it is taken from {Path.cwd()}), or name a hub id such as "
            "Qwen/Qwen3-0.6B",
        )


def _check_base(path: Path, adapter: dict[str, Any], where: str) -> None:
    """Refuse an adapter whose base is not there, or is an adapter too."""
    base = adapter.get("base_model_name_or_path")
    if not base:
        return  # told by `base_of`
    place = f"{where}: the base of the adapter in {path}"
    if (Path(base).expanduser() / ADAPTER_FILE).is_file():
        itself = (
            "is this adapter itself"
            if Path(base).expanduser().resolve() == path.resolve()
            else "is an adapter"
        )
        raise RecipeError(
            f"{place}, {base}, {itself}",
            "write the model's own folder or hub id as base_model_name_or_path into "
            f"{path / ADAPTER_FILE}; an adapter "
            "that was made on another is put onto that one merged into its base",
        )
    _check_folder(base, place)


def _check_weights(path: Path, where: str) -> None:
    if not any((path / name).is_file() for name in (CONFIG_FILE, ADAPTER_FILE)):
        what, hint = what_else(path)
        raise RecipeError(
            f"{where}: {path} holds neither config.json nor "
            f"{ADAPTER_FILE}{f': it is {what}' if what else ''}",
            hint,
        )
    if any(file.is_file() for file in path.glob("*.safetensors")):
        return
    pickles = sorted(
        file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)
    )
    if pickles:
        raise RecipeError(
            f"{where}: {path} holds its weights as pickles only ({pickles[0]}), which can run "
            "code when they are read",
            "convert them to safetensors (save_pretrained of transformers writes them)",
        )
    raise RecipeError(
        f"{where}: {path} holds no weights (*.safetensors)",
        "is the download, or the run, complete?",
    )


def _is_unfinished_run(path: Path) -> str:
    run = path.parent
    return (
        f"; the run {run} has not finished"
        if path.name == "final" and (run / "resolved.json").exists()
        else ""
    )


def read_chat_template(name: str) -> str:
    """Return a chat template: the content of a Jinja file, or the one that TRL ships under this
    name, or `chatml`, which TRL has not.

    Raises: RecipeError with the names that exist.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return text_of(path, f"model.chat_template: {name}", "a chat template")
    spec = find_spec("trl")
    assert spec is not None, "TRL is a dependency of ours"
    assert spec.submodule_search_locations, "TRL is a package"
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"
    shipped = folder / f"{name}.jinja"
    if not shipped.is_file():
        if name == "chatml":
            return CHATML
        from difflib import get_close_matches

        names = sorted(["chatml", *(file.stem for file in folder.glob("*.jinja"))])
        close = get_close_matches(name, names, n=3) or names[:8]
        raise RecipeError(
            f"model.chat_template: {name!r} is neither a file nor a template that TRL ships",
            f"did you mean {', '.join(close)}?",
        )
    return shipped.read_text(encoding="utf-8")


def adapter_config(name: str, where: str = "model.name_or_path") -> dict[str, Any] | None:
    """Return what a folder's adapter_config.json says; None where there is none.

    Raises: RecipeError when it is no object, or names its kind or its base by what is not a name.
    """
    file = Path(name).expanduser() / ADAPTER_FILE
    if not file.is_file():
        return None
    adapter = read_object(file, where)
    for key in ("peft_type", "base_model_name_or_path", "revision", "task_type"):
        if not isinstance(adapter.get(key), str | None):
            raise RecipeError(
                f"{where}: {file}: {key} is {str(adapter[key])[:40]!r}, which is not a name",
                "the file is damaged: save it again",
            )
    return adapter


def saved_outputs(name: str) -> int | None:
    """Return how many outputs the reward head of a folder has; None for a folder without one, and
    for a hub id."""
    path = Path(name).expanduser()
    adapter = adapter_config(name)
    if adapter is not None:
        if adapter.get("task_type") != "SEQ_CLS":
            return None
        return _rows_of_head(path)
    if not (path / "config.json").is_file():
        return None
    config = read_object(path / CONFIG_FILE, "model.name_or_path")
    if "ForSequenceClassification" not in str(config.get("architectures")):
        return None
    labels, names = config.get("num_labels"), config.get("id2label")
    if not isinstance(labels, int | None) or not isinstance(names, dict | None):
        raise RecipeError(
            f"model.name_or_path: {path / CONFIG_FILE}: num_labels is not a number of "
            "labels, or id2label not a table",
            "the file is damaged: download it again, or save the model again",
        )
    return labels or len(names or {}) or 2


def _rows_of_head(folder: Path) -> int | None:
    """The outputs of the head in an adapter's file, from the header that safetensors begins
    with."""
    for file in folder.glob("*.safetensors"):
        for key, value in weights_header(file).items():
            if key.split(".")[-2:] in (["score", "weight"], ["classifier", "weight"]):
                return int(value["shape"][0])
    return None


def base_of(model: Model) -> tuple[str, str | None]:
    """Return name and revision of the model itself, or of the base that its adapter names."""
    adapter = adapter_config(model.name_or_path)
    if adapter is None:
        return model.name_or_path, model.revision
    if not adapter.get("base_model_name_or_path"):
        raise RecipeError(
            f"model.name_or_path: the adapter in {model.name_or_path} does not name its base",
            f"write base_model_name_or_path into its {ADAPTER_FILE}",
        )
    return adapter["base_model_name_or_path"], adapter.get("revision")


def own_quantization(name: str) -> str:
    """Return how the weights of a folder are quantized already: `nf4`, `fp4`, `int8`, another
    method's name, or ""."""
    path = Path(name).expanduser()
    adapter = adapter_config(name)
    if adapter is not None:
        base = adapter.get("base_model_name_or_path")
        return own_quantization(base) if base else ""
    if not (path / CONFIG_FILE).is_file():
        return ""
    said = read_object(path / CONFIG_FILE, "model.name_or_path").get("quantization_config")
    if not isinstance(said, dict):
        return ""
    if said.get("load_in_8bit") or said.get("load_in_4bit"):
        return "int8" if said.get("load_in_8bit") else str(said.get("bnb_4bit_quant_type", "fp4"))
    return str(said.get("quant_method", "")) or "unknown"


def as_trained(model: Model) -> Model:
    """Return a model section that says how the weights are quantized already.

    Raises: RecipeError when weights that are quantized could not be trained as the recipe says.
    """
    found = own_quantization(model.name_or_path)
    if gguf_file(base_of(model)[0]) is not None and model.quantization != "none":
        raise RecipeError(
            f"model.quantization: {base_of(model)[0]} is a GGUF file, which is read as it is",
            "leave model.quantization out",
        )
    if not found:
        return model
    what = (
        f"model.name_or_path: the weights of {model.name_or_path} are quantized already ({found})"
    )
    if found not in ("nf4", "fp4", "int8"):
        raise RecipeError(
            f"{what}, and those cannot be trained here, nor can an adapter on them",
            "name the model that they were made from; model.quantization=nf4 with model.lora "
            "needs as little memory",
        )
    if model.quantization not in ("none", found):
        raise RecipeError(
            f"{what}, so model.quantization={model.quantization} cannot be", "leave it out"
        )
    if model.lora is None:
        raise RecipeError(
            f"{what}, so they cannot be trained themselves",
            "add model.lora={} to train an adapter on them, or name the model that they were made "
            "from",
        )
    return model.model_copy(update={"quantization": found})


def local_name(name: str) -> str:
    """Return folders as absolute paths, so that a saved adapter finds its base from any working
    directory."""
    return source_of(name)[0]
