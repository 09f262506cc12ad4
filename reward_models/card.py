"""Cards: a YAML file that says which reward model it is, how it is loaded and what its scores mean.
Imports no torch.

A card stands in `cards/` (shipped, named without folder and ending), anywhere else as a file, or as
`reward_model.yaml` in the folder of a trained reward model: `final/` of `aligner reward`, or the
run directory above it. A path in a card that begins with a dot is taken from the card's folder, so
that a folder can be moved; others are taken from the working directory. What the card of a folder
cannot say stands in `grants.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from aligner.config.hints import did_you_mean
from aligner.config.named import Names
from aligner.config.recipe import Endpoint, Section
from aligner.config.segments import Segments, settings_read, without_effect
from aligner.config.texts import as_json, check_texts
from aligner.config.yaml_lines import Document, KeyPath, dotted, read_document, text_of
from aligner.errors import Problem, RecipeError

from .base import UNBOUNDED, Range
from .grants import CARD_FILE, HINT, asked_for, is_of_folder, placed_verifier
from .rubric_items import Items, Write

KIND = "a card of a reward model"

Kind = Literal[
    "bradley_terry",
    "regression",
    "pairwise",
    "segment",
    "judge",
    "rating",
    "rules",
    "rubric",
    "verifier",
    "toy",
    "ensemble",
    "tournament",
]


class Card(Section):
    """What a card may say. Which keys a kind needs stands in `NEEDED`."""

    kind: Kind
    """How it scores."""
    name: str = ""
    """What reports call it. Absent: the name of the file or folder."""
    description: str = ""
    """What it was trained on and for, in a sentence."""
    license: str = ""
    """Licence of the weights."""
    url: str = ""
    """Where it comes from."""
    model: Annotated[str | None, Names("model")] = None
    """Hub id or folder of the weights."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights; the head is computed in float32 in every case."""
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Load the weights with bitsandbytes in 4 or 8 bits."""
    double_quant: bool = True
    """Quantize the quantization constants too; only for `nf4` and `fp4`."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ..."""
    trust_remote_code: bool = False
    """Run code that ships with the model."""
    chat_template: Annotated[str | None, Names("template")] = None
    """A Jinja file, or the name of a template that TRL ships. Absent: the tokenizer's own."""
    pad_token: str | None = None
    """Padding token. Absent: the tokenizer's, where it ends no answer, or another that it has."""
    max_length: int = Field(4096, ge=2)
    """Longest conversation in tokens. Of a longer one the beginning is cut off, and the score says
    so."""
    read_at: Literal["stop", "end"] = "stop"
    """Where the score is read: at the token that ends the answer, or at what the chat template
    writes behind it. Only matters for templates that write something there (`<|im_end|>` and a
    newline); the models of other tools mostly want `end`."""
    second_bos: bool = False
    """Put a second start token before the first. A model wants it whose authors rendered a chat
    template that begins with that token and tokenized the text with another one."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens of a batch, padding included."""
    attributes: list[str] = []
    """`regression`: names of its outputs, in order."""
    weights: dict[str, float] = {}
    """`regression`: weight of each attribute in the score. Absent: all the same."""
    segments: Segments | None = None
    """`segment`: how answers are cut."""
    members: Annotated[list[str], Names("scorer")] = []
    """`ensemble`: its members, each a card or `kind:argument`. `tournament`: the one that
    compares."""
    combine: Literal["mean", "min", "lower_bound"] = "mean"
    """`ensemble`: mean, worst member, or mean minus `spread_weight` standard deviations."""
    spread_weight: float = Field(1.0, ge=0.0)
    """`ensemble`, `lower_bound`: how many standard deviations between members are taken off."""
    standardize: bool = False
    """`ensemble`: bring the members to one scale first: a mean of 0 and a spread of 1 over the rows
    scored together."""
    opponents: int | None = Field(None, ge=1)
    """`tournament`: how many other answers to its prompt each one meets, about; absent: all."""
    verifier: Annotated[str | None, Names("verifier")] = None
    """`verifier`: what stands after `verifier:` elsewhere, `number` for example."""
    endpoint: Endpoint | None = None
    """`judge`, `rating`, `rules`, `rubric`: the language model that judges."""
    rubric: Annotated[str | None, Names("file")] = None
    """`judge`, `rating`: a text file with what is to be judged, in place of ours."""
    scale: Annotated[list[float], Field(min_length=2, max_length=2)] = [1.0, 10.0]
    """`judge`: worst and best grade."""
    samples: int = Field(1, ge=1, le=64)
    """`rating`: ratings of each answer, whose mean is its score."""
    rules: list[str] = []
    """`rules`: what an answer shall keep to, a sentence each; `aligner data rules` draws them from
    pairs."""
    items: Items = []
    """`rubric`: the checklist of all prompts, each item a text or `{text, weight}`."""
    write: Write | None = None
    """`rubric`: have the endpoint write a checklist for each prompt."""
    items_from: Literal["answer"] | None = None
    """`rubric`: take the checklist from the row's right answer, which is a JSON list of such
    items."""
    range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """Smallest and largest score, where there are such."""
    accuracy: float | None = None
    """Share of the pairs held out of its training that it ranked rightly."""
    recipe_hash: str = ""
    """Hash of the recipe that made it."""


NEEDED: dict[str, tuple[str, ...]] = {
    "bradley_terry": ("model",),
    "regression": ("model", "attributes"),
    "pairwise": ("model",),
    "segment": ("model", "segments"),
    "judge": ("endpoint",),
    "rating": ("endpoint",),
    "rules": ("endpoint", "rules"),
    "rubric": ("endpoint",),
    "verifier": ("verifier",),
    "toy": (),
    "ensemble": ("members",),
    "tournament": ("members",),
}
"""Kind -> the keys that its card must have."""

ABOUT = {"kind", "name", "description", "license", "url", "range", "accuracy", "recipe_hash"}
"""Keys that say what a reward model is; they go with every kind."""

OF_MODELS = {
    "model",
    "revision",
    "dtype",
    "quantization",
    "double_quant",
    "attn_implementation",
    "trust_remote_code",
    "chat_template",
    "pad_token",
    "max_length",
    "batch_tokens",
}

ALLOWED: dict[str, set[str]] = {
    "bradley_terry": OF_MODELS | {"read_at", "second_bos"},
    "regression": OF_MODELS | {"read_at", "second_bos", "attributes", "weights"},
    "pairwise": OF_MODELS,
    "segment": OF_MODELS | {"segments"},
    "judge": {"endpoint", "rubric", "scale"},
    "rating": {"endpoint", "rubric", "samples"},
    "rules": {"endpoint", "rules"},
    "rubric": {"endpoint", "items", "write", "items_from"},
    "verifier": {"verifier"},
    "toy": set(),
    "ensemble": {"members", "combine", "spread_weight", "standardize"},
    "tournament": {"members", "opponents"},
}
"""Kind -> the keys that mean something for it, beside `ABOUT`."""


def range_of(card: Card) -> Range:
    """The card's range, or none."""
    return UNBOUNDED if card.range is None else (card.range[0], card.range[1])


def shipped_cards() -> dict[str, str]:
    """Name -> text of the cards in `cards/`."""
    folder = resources.files("aligner.reward_models").joinpath("cards")
    found = {
        item.name: item.read_text("utf-8")
        for item in folder.iterdir()
        if item.name.endswith(".yaml")
    }
    return {name.removesuffix(".yaml"): found[name] for name in sorted(found)}


def find_card(spec: str, *, trust_remote_code: bool = False) -> Card | None:
    """The card that a text names, or None when it names none.

    `trust_remote_code`: the user allows the card of a folder to ask for the model's own code.
    Raises: RecipeError for one that cannot be read, or asks for more than its place allows.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        for file in (path / CARD_FILE, path / "final" / CARD_FILE):
            if file.is_file():
                return read_card(file, trust_remote_code=trust_remote_code)
        return None
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise RecipeError(
                f"there is no reward model card {spec}",
                "the path is taken from the working directory",
            )
        return read_card(path, trust_remote_code=trust_remote_code)
    text = shipped_cards().get(spec)
    return None if text is None else parse_card(text, f"{spec}.yaml", spec)


def read_card(path: Path, *, trust_remote_code: bool = False) -> Card:
    """Read the card in a file; see `find_card`."""
    where, name = str(path), path.stem
    text = text_of(path, where, KIND)
    if path.name == CARD_FILE:
        folder = path.resolve().parent
        name = folder.parent.name if folder.name == "final" else folder.name
    card = parse_card(text, where, name)
    if is_of_folder(path):
        asked = list(asked_for(card, path.parent, trust_remote_code=trust_remote_code))
        if asked:
            document = read_document(text, where, KIND)
            raise RecipeError(
                f"{where} asks for what only you can allow",
                HINT,
                [_problem(document, where, *one) for one in asked],
            )
    return _placed_in(card, path.parent)


def parse_card(text: str, where: str, name: str) -> Card:
    """Read a card, with its paths as they are written; RecipeError lists everything that is wrong
    with it, with its lines."""
    document = read_document(text, where, KIND)
    values, problems = document.values, list(document.problems)

    def note(path: KeyPath, message: str, hint: str = "") -> None:
        problems.append(_problem(document, where, path, message, hint))

    for found in check_texts(values):
        note(found.path, found.message, found.hint)
    card: Card | None = None
    try:
        card = Card.model_validate_json(as_json(values), strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path = tuple(item["loc"])
            if item["type"] == "extra_forbidden":
                note(path, "is not a key of a card", did_you_mean(str(path[-1]), Card.model_fields))
            else:
                note(path, item["msg"][0].lower() + item["msg"][1:])
    if card is not None:
        for key in NEEDED[card.kind]:
            if not getattr(card, key):
                note((key,), f"is missing, and the kind `{card.kind}` needs it")
        for key in card.model_fields_set - ABOUT - ALLOWED[card.kind]:
            note((key,), f"has no effect for the kind `{card.kind}`", "drop it")
        if card.kind == "rubric":
            _refuse_lists(card, note)
        if card.segments is not None:
            for key, rules in without_effect(card.segments.rule, card.segments.model_fields_set):
                note(("segments", key), f"has no effect without `rule: {rules}`", "drop it")
        for key in card.weights:
            if key not in card.attributes:
                note(
                    ("weights", key),
                    "is none of the attributes",
                    did_you_mean(key, card.attributes),
                )
        for key in ("range", "scale"):
            ends = getattr(card, key)
            if ends is not None and not ends[0] < ends[1]:
                note((key,), f"runs from {ends[0]:g} to {ends[1]:g}", "the smaller number first")
    if problems or card is None:
        raise RecipeError(f"{where} is not {KIND}", "see reward_models/README.md", problems)
    return card.model_copy(update={"name": card.name or name})


def _refuse_lists(card: Card, note: Callable[[KeyPath, str, str], None]) -> None:
    """A rubric has one checklist."""
    given = [key for key in ("items", "write", "items_from") if getattr(card, key)]
    if not given:
        hint = "write `items`, or `write: {items: 6}`, or `items_from: answer`"
        note(("items",), "is missing, and so is everything that stands for it", hint)
    for key in given[1:]:
        note((key,), f"does not go with `{given[0]}`", "keep one of them")


def _problem(
    document: Document, where: str, path: KeyPath, message: str, hint: str = ""
) -> Problem:
    """A problem at a key, or at the nearest that holds it."""
    heads = [path[:end] for end in range(len(path), 0, -1)]
    line = next((document.lines[head] for head in heads if head in document.lines), 1)
    return Problem(message, f"{where}:{line}", dotted(path), hint)


def _placed_in(card: Card, folder: Path) -> Card:
    """The card with the paths that begin with a dot taken from its folder."""

    def placed(path: str | None) -> str | None:
        return str(folder / path) if path is not None and path.startswith(".") else path

    keys = ("model", "chat_template", "rubric")
    update: dict[str, Any] = {key: placed(getattr(card, key)) for key in keys}
    update["members"] = [placed(member) for member in card.members]
    update["verifier"] = placed_verifier(card.verifier, folder)
    if card.segments is not None:
        reference = {"reference": placed(card.segments.reference)}
        update["segments"] = card.segments.model_copy(update=reference)
    return card.model_copy(update=update)


def card_text(card: Card) -> str:
    """The card as YAML, without what is left at its default."""
    values = card.model_dump(mode="json", exclude_defaults=True)
    if card.segments is not None:
        values["segments"] = settings_read(card.segments)
    assert all(not isinstance(value, float) or math.isfinite(value) for value in values.values())
    return yaml.safe_dump({"kind": card.kind, **values}, sort_keys=False, allow_unicode=True)
