"""Save the tokenizer of a result: the files of its base, byte for byte, but for what the recipe
changed.

transformers rewrites all of them in the form of its own version, so that nobody could tell
whether a tokenizer is still the base's. Here files are copied. Where the recipe names a stop or
padding token, or a template, that one value changes; new tokens alone, or a word that became a
token, have the whole tokenizer written again.

A template's `{% generation %}` marks are for training and only transformers reads them, so the
saved template has comments in their place, which write the same nothing and leave the same blanks.
"""

from __future__ import annotations

import json
import re
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Model
from aligner.models.files import TOKENIZER_FILES, base_of, has_tokenizer
from aligner.models.gguf import gguf_file
from aligner.models.tokenizers import load_tokenizer_files
from aligner.models.vision import PROCESSOR_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, SPECIAL, TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
TEMPLATES = "additional_chat_templates"
FILES = (
    *TOKENIZER_FILES,
    CONFIG,
    SPECIAL,
    TEMPLATE,
    "added_tokens.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    *PROCESSOR_FILES,
)
COMMENT_OR_MARK = re.compile(r"\{#.*?#\}|\{%([-+]?)\s*((?:end)?generation)\s*([-+]?)%\}", re.DOTALL)


def without_marks(template: str) -> str:
    """Return a chat template that plain Jinja reads, and that writes what this one does."""
    return COMMENT_OR_MARK.sub(
        lambda found: f"{{#{found[1]} {found[2]} {found[3]}#}}" if found[2] else found[0], template
    )


class SavedTokenizer:
    """A tokenizer as a trainer saves it: `save_pretrained` writes the files of the base that it was
    loaded from."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, section: Model) -> None:
        self.tokenizer, self.section = tokenizer, section

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the files into a folder."""
        place = Path(folder)
        if self._is_other_than_its_base or not self._files:
            self._write_anew(place)
        else:
            for name, file in self._files.items():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place / name)
            self._write_named_tokens(place)
        self._write_template(place)

    @cached_property
    def _base(self) -> PreTrainedTokenizerBase:
        """The tokenizer without what the recipe changes."""
        return load_tokenizer_files(self.section)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Name -> file of the base's tokenizer; none where it is a part of another file."""
        name, revision = self.section.name_or_path, self.section.revision
        if not has_tokenizer(name):
            name, revision = base_of(self.section)
        folder = Path(name).expanduser()
        if gguf_file(name) is not None:
            return {}
        if not folder.is_dir():
            found = _cached(name, revision)
            if found is None:
                return {}
            folder = found
        names = [*FILES, *self.tokenizer.vocab_files_names.values()]
        files = [folder / name for name in dict.fromkeys(names) if name]
        files += folder.glob(f"{TEMPLATES}/*.jinja")
        config = folder / CONFIG
        if config.is_file() and "auto_map" in config.read_text(encoding="utf-8"):
            files += folder.glob("*.py")  # its own code, and what that may import
        return {file.relative_to(folder).as_posix(): file for file in files if file.is_file()}

    @cached_property
    def _is_other_than_its_base(self) -> bool:
        """Say whether some text becomes other ids."""
        section = self.section
        if not (section.new_tokens or section.eos_token or section.pad_token):
            return False
        return _rules(self.tokenizer) != _rules(self._base)

    def _write_anew(self, place: Path) -> None:
        """Write what transformers does, with the padding token that the base or the recipe
        names."""
        tokenizer, held = self.tokenizer, self.tokenizer.pad_token
        tokenizer.pad_token = self.section.pad_token or self._base.pad_token
        try:
            tokenizer.save_pretrained(place)
        finally:
            tokenizer.pad_token = held

    def _write_named_tokens(self, place: Path) -> None:
        named = {"eos_token": self.section.eos_token, "pad_token": self.section.pad_token}
        named = {key: value for key, value in named.items() if value is not None}
        _change(place / CONFIG, named)
        if (place / SPECIAL).is_file():
            held = json.loads((place / SPECIAL).read_text(encoding="utf-8"))
            _change(place / SPECIAL, {key: value for key, value in named.items() if key in held})

    def _write_template(self, place: Path) -> None:
        template = self.tokenizer.chat_template
        if self.section.chat_template is not None and isinstance(template, str):
            config = place / CONFIG
            held = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
            if "chat_template" in held and not (place / TEMPLATE).is_file():
                _change(config, {"chat_template": template})
            else:
                (place / TEMPLATE).write_text(template, encoding="utf-8", newline="")
        for file in (place / CONFIG, place / TEMPLATE, *place.glob(f"{TEMPLATES}/*.jinja")):
            if file.is_file():
                file.write_bytes(without_marks(file.read_bytes().decode("utf-8")).encode("utf-8"))


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache that holds a model's files; None where no tokenizer file is in
    it."""
    from transformers.utils import cached_file

    for file in TOKENIZER_FILES:
        found = cached_file(
            name,
            file,
            revision=revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        if found is not None:
            return Path(found).parent
    return None


def _rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides over the ids of a text."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return json.dumps(
            [sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.all_special_ids))]
        )
    return json.dumps(
        {**json.loads(fast.to_str()), "truncation": None, "padding": None}, sort_keys=True
    )


def _change(file: Path, values: dict[str, Any]) -> None:
    """Change values of a JSON file; one that says them already keeps its bytes."""
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    contents = {}
    for key, token in held.items():
        contents[key] = token.get("content") if isinstance(token, dict) else token
    if any(contents.get(key) != value for key, value in values.items()):
        file.write_text(
            json.dumps({**held, **values}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
