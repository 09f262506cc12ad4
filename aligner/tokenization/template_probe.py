"""Refuse chat templates that never finish, before they run in this process.

A template is a program that came with a model: loops within loops run for minutes, and a long
multiplication of texts takes all memory, where no signal reaches. So a template that this machine
has not met renders three short conversations in a process that can be stopped. That it did is kept
in the cache, under the hash of the template.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.errors import RecipeError
from aligner.runs.cache import cache_folder
from aligner.sandbox.worker import Limits, StartError, Worker

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHILD = Path(__file__).with_name("template_child.py")
"""Opened by its path in the other process: here nothing of it is needed, and it loads jinja2."""

LIMITS = Limits(memory_bytes=2**30, cpu_s=5.0)
TIMEOUT_S = 60.0

_MET: set[str] = set()


def refuse_endless(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that runs for too long, or writes too much, on conversations of a few
    letters.

    Raises: RecipeError naming the file that the template came from.
    """
    given = tokenizer.chat_template
    for template in given.values() if isinstance(given, dict) else [given]:
        if template is not None and template not in _MET:
            _refuse_endless(template, tokenizer)
            _MET.add(template)


def _refuse_endless(template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    mark = cache_folder("templates") / sha256(template.encode()).hexdigest()
    if not mark.exists():
        wrong = _probe(
            template, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        )
        if wrong:
            raise RecipeError(
                f"{file_of(tokenizer)}: the chat template does not come to an end on two short "
                f"turns: {wrong}",
                "choose another with model.chat_template, or correct it there",
            )
        with suppress(OSError):  # without a place to keep it, it is tried again
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def file_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the file that a tokenizer's chat template came from, or the key of a recipe."""
    folder = Path(str(tokenizer.name_or_path))
    files = [folder / "chat_template.jinja", folder / "tokenizer_config.json"]
    return str(next((file for file in files if file.is_file()), "model.chat_template"))


def _probe(template: str, tokens: dict[str, str]) -> str:
    """ "" or what is wrong."""
    factory = f"{CHILD}:open_probe"
    try:
        with Worker(factory, None, LIMITS, site=False) as worker:
            outcome = worker.call({"template": template, "tokens": tokens}, TIMEOUT_S)
    except StartError as error:
        warnings.warn(
            f"the chat template could not be tried in a process of its own: {error}", stacklevel=2
        )
        return ""
    return outcome.stopped or outcome.error or outcome.result
