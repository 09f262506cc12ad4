"""What a card in a model's folder may say: it describes the model, and grants nothing. Imports no
torch.

Such a card came with the weights, so whoever made these has written it. It may say how they are
read. It cannot have code run, send texts or a key anywhere, or lead to other files: that is for the
user alone, in a card of their own, a recipe, or on the command line. A file named
`reward_model.yaml` is the folder's also where it is named itself, and a link to it is, too.

The reference of a segment model may lie elsewhere, as the base of an adapter may: it is read as
weights, and as code only where that is granted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .card import Card

CARD_FILE = "reward_model.yaml"
"""Name of the card in the folder of a model."""

PLAIN_RULES = ("exact", "number", "json")
"""Verifiers that read no file and run nothing."""

HINT = (
    f"a card named {CARD_FILE} describes the model of its folder; what you want to allow stands in "
    "a copy of it in a file of your own, under another name and with its paths from there (the "
    "folder as `model`): read it, and name that file"
)

Asked = tuple[tuple[str | int, ...], str, str]
"""Key, what it asks for, and how the user can allow it."""


def is_of_folder(path: Path) -> bool:
    """Say whether a card is the one of a model's folder, and not the user's."""
    return CARD_FILE in (path.name, path.resolve().name)


def asked_for(card: Card, folder: Path, *, trust_remote_code: bool = False) -> Iterator[Asked]:
    """What a card of a folder asks for that only the user can grant, with its paths as they are
    written; `trust_remote_code` is granted already."""
    if card.trust_remote_code and not trust_remote_code:
        yield (
            ("trust_remote_code",),
            "asks to run the code that ships with the model",
            "give --trust-remote-code where the command has it",
        )
    if card.endpoint is not None:
        where = card.endpoint.base_url or card.endpoint.backend
        key = card.endpoint.api_key_env
        yield ("endpoint",), f"asks to send what is judged to {where}, with the key in {key}", ""
    if card.kind == "verifier" and card.verifier not in PLAIN_RULES:
        own = f"verifier:{placed_verifier(card.verifier, folder)}"
        yield ("verifier",), f"asks to run `{own}`", f"name `{own}` in place of the folder"
    if "/" in (card.attn_implementation or ""):
        name = card.attn_implementation
        yield ("attn_implementation",), f"asks to run {name}, which is code from the hub", ""
    yield from _asked_paths(card, folder)


def placed_verifier(verifier: str | None, folder: Path) -> str | None:
    """A verifier with the path of its file taken from the card's folder, where it begins with a
    dot."""
    rule = "json=" if (verifier or "").startswith("json=") else ""
    path = (verifier or "").removeprefix(rule)
    return f"{rule}{folder / path}" if path.startswith(".") else verifier


def _asked_paths(card: Card, folder: Path) -> Iterator[Asked]:
    inside = "write a path in the folder, beginning with `./`"
    if card.model is not None and not _lies_inside(card.model, folder):
        yield ("model",), f"leads out of the folder, to {card.model}", inside
    template = card.chat_template or "./"
    is_shipped = re.fullmatch(r"[\w-]+", template) and not Path(template).is_file()
    if not is_shipped and not _lies_inside(template, folder):
        yield ("chat_template",), f"leads out of the folder, to {template}", inside
    rules = ("toy", *(f"verifier:{name}" for name in PLAIN_RULES))
    for number, member in enumerate(card.members):
        place = folder / member
        is_card = place.is_dir() or place.name == CARD_FILE
        if member not in rules and not (_lies_inside(member, folder) and is_card):
            yield (
                ("members", number),
                f"{member} is no folder in this one with a {CARD_FILE} of its own",
                "",
            )


def _lies_inside(path: str, folder: Path) -> bool:
    """Say whether a path, followed through all links, is taken from the card's folder and stays
    there."""
    return path.startswith(".") and (folder / path).resolve().is_relative_to(folder.resolve())
