"""What stands behind the names in a recipe and in the cards that it leads to, file by file.

`aligner.config.named` says which keys are names. A card counts with what it says of the scores, and
with all that it names itself. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel

from aligner.config.callables import is_callable
from aligner.config.load import load_recipe, recipe_hash
from aligner.config.named import Kind, Named, names_in
from aligner.config.recipe import Endpoint, Recipe
from aligner.events import OnEvent, Warned, tell
from aligner.models.files import read_chat_template
from aligner.models.fingerprint import model_parts
from aligner.runs.digests import digests_of
from aligner.runs.files import read_json
from aligner.runs.inputs import Parts, check_named
from aligner.runs.run import Run

from .card import Card
from .catalogue import read_spec

SAYS_NOTHING = {
    *("name", "description", "license", "url", "accuracy", "recipe_hash", "batch_tokens"),
    *("model", "members", "endpoint"),
}
"""Keys of a card that decide no score, or name what is looked at itself."""

ENDPOINT = {"backend", "model", "temperature", "top_p", "max_tokens", "extra"}
"""What decides the replies of a judge."""


def compare_inputs(run: Run, recipe: Recipe, on_event: OnEvent | None) -> None:
    """Remember what stands behind the names of a recipe, or refuse to resume with anything else;
    tell what could not be compared.

    Raises: DataError that names the key, the file and its digests.
    """
    for remark in check_named(run, named_inputs(recipe)):
        tell(on_event, Warned(remark))


def inputs_changed(folder: Path, recipe: Recipe) -> bool:
    """Say whether a data file of a run, or what another of its recipe's names leads to, is not what
    the run was made of."""
    known = read_json(folder, "inputs.json") or {}
    sources = {Path(path): digest for path, digest in known.get("sources", {}).items()}
    now = digests_of(path for path in sources if path.is_file())
    if any(sources[path] != digest for path, digest in now.items()):
        return True
    return "named" in known and known["named"] != named_inputs(recipe)


def named_inputs(recipe: BaseModel, *, has_data: bool = False) -> dict[str, Parts]:
    """Return for each key of a recipe that names something the files behind it, with their SHA-256.
    `has_data`: data files too, which a run compares on its own."""
    found: dict[str, Parts] = {}
    for named in names_in(recipe):
        if is_callable(named.name) or (named.kind == "data" and not has_data):
            continue
        if named.kind == "script" and not isinstance(recipe, Card):
            continue  # of a search, which may continue with a longer one
        if named.kind == "recipe":
            found |= _of_inner_recipe(named)
        elif parts := READERS[named.kind](named):
            found[named.key] = {**found.get(named.key, {}), **parts}
        elif named.kind == "model" and not isinstance(named.section, Endpoint):
            found.setdefault(named.key, {})
    return found


def _of_model(named: Named) -> Parts:
    """The files of a model; none where a server has it, or it is not on this machine yet."""
    section = named.section
    if isinstance(section, Endpoint) and section.backend != "local":
        return {}
    is_its_own = named.key.rpartition(".")[2] != "reference_model"
    return _parts(named.name, getattr(section, "revision", None) if is_its_own else None)


def _parts(name: str, revision: str | None, *, has_weights: bool = True) -> Parts:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return model_parts(name, revision, has_weights=has_weights)
    except LocalEntryNotFoundError:  # it is looked at again once it is there
        return {}


def _of_template(named: Named) -> Parts:
    return {named.name: sha256(read_chat_template(named.name).encode()).hexdigest()}


def _of_files(named: Named) -> Parts:
    return _digests(Path(named.name).expanduser())


def _of_testset(named: Named) -> Parts:
    """What is frozen of a test set, and not the reports on data that were held against it."""
    return _digests(Path(named.name).expanduser() / "manifest.json")


def _of_objective(named: Named) -> Parts:
    return _digests(Path(named.name).expanduser()) if named.name.endswith(".py") else {}


def _of_function(named: Named) -> Parts:
    """The file of `path/to/file.py:name`, or of a verifier's `json=FILE` and `file.py:name`."""
    argument = named.name.removeprefix("json=")
    path, colon, _ = argument.rpartition(":")
    return _digests(Path(path if colon else argument.split(",")[0]).expanduser())


def _digests(path: Path) -> Parts:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digests = digests_of(file for file in files if file.is_file())
    return {str(file): digest for file, digest in digests.items()}


def scorer_parts(spec: str) -> Parts:
    """Return what a scorer's card says, and what stands behind its names, with their SHA-256."""
    card = read_spec(spec)
    parts = {f"the card of {spec}": sha256(_said(card).encode()).hexdigest()}
    for inner in named_inputs(card).values():
        parts |= inner
    return parts


def _said(card: Card) -> str:
    endpoint = "" if card.endpoint is None else card.endpoint.model_dump_json(include=ENDPOINT)
    return f"{card.model_dump_json(exclude=SAYS_NOTHING)} {endpoint}"


def _of_inner_recipe(named: Named) -> dict[str, Parts]:
    """The values of a recipe that another one runs, and what stands behind its names."""
    inner = load_recipe("dpo", named.name, list(getattr(named.section, "overrides", []))).recipe
    found = {f"{named.key}: {key}": of for key, of in named_inputs(inner, has_data=True).items()}
    return {named.key: {named.name: recipe_hash(inner)}, **found}


READERS: dict[Kind, Callable[[Named], Parts]] = {
    "model": _of_model,
    "tokenizer": lambda named: _parts(named.name, None, has_weights=False),
    "template": _of_template,
    "scorer": lambda named: scorer_parts(named.name),
    "verifier": _of_function,
    "function": _of_function,
    "objective": _of_objective,
    "file": _of_files,
    "testset": _of_testset,
    "script": _of_files,
    "data": _of_files,
}
"""Kind of name -> what finds the files behind it."""
