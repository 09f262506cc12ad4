"""Phrasings: the wordings of a mosaic's numbers, tags, lists and meta-instructions, as data.

Each text carries a label (`permute.reverse`, `maskout.longest`, ...) that says what it means, and
belongs to a form: `one` speaks of a single instruction, `many` of several. Texts are one line each,
and no line can be read as two different labels; so a finished sample can be read again without
knowing how it was made. `phrasings_en.yaml` is built in. A user's file of the same form is added to
it, or replaces it with `extends: none` (for another language, say).

Imports no torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from aligner.config.hints import did_you_mean
from aligner.config.recipe import MaskRule, PermuteRule
from aligner.config.yaml_lines import read_document, text_of
from aligner.errors import Problem, RecipeError

OURS = Path(__file__).with_name("phrasings_en.yaml")

PERMUTE_RULES: tuple[str, ...] = get_args(PermuteRule)
MASK_RULES: tuple[str, ...] = get_args(MaskRule)

SLOTS: dict[str, dict[str, set[str]]] = {
    "format.tags": {"one": {"begin", "end"}, "many": {"begin", "end"}},
    "format.list": {"one": set(), "many": set()},
    **{
        f"permute.{rule}": {"many": {"list"} if rule == "explicit" else set()}
        for rule in PERMUTE_RULES
    },
    "maskout.explicit": {"one": {"list"}, "many": {"list"}},
    "maskout.longest": {"one": set(), "many": {"count"}},
    "maskout.shortest": {"one": set(), "many": {"count"}},
    "maskout.odd": {"many": set()},
    "maskout.even": {"many": set()},
}
"""Label -> form -> the slots that every text of it has, each once."""

BY_ALPHABET = tuple(label for label in SLOTS if label.startswith("permute.alphabet"))
BY_WORDS = (
    *(label for label in SLOTS if label.startswith("permute.words")),
    "maskout.longest",
    "maskout.shortest",
)
"""Rules that a language without the one or the other does not have."""

_SLOT = re.compile(r"\{(\w+)\}")
_SAMPLES = {"begin": "<<a>>", "end": "<<b>>", "list": "[2, 1]", "count": "2"}
PATTERNS = {
    "begin": r"(?P<begin>\S.*?)",
    "end": r"(?P<end>\S.*?)",
    "list": r"(?P<list>[\W\d]*\d[\W\d]*)",
    "count": r"(?P<count>\d+)",
}
"""What may stand in a slot of a finished text."""


@dataclass(frozen=True, slots=True)
class Text:
    """A meta-instruction with its slots still open, what it means, and whether it speaks of one or
    of many."""

    label: str
    form: str
    wording: str

    def filled(self, **slots: str) -> str:
        """Return the line as it stands in a sample."""
        return _SLOT.sub(lambda slot: slots[slot[1]], self.wording)


@dataclass(frozen=True, slots=True)
class Meta:
    """A meta-instruction that was read: its text among the phrasings, and what stood in the
    slots."""

    text: Text
    slots: dict[str, str]


@dataclass(frozen=True)
class Phrasings:
    """Everything that the look of a mosaic is drawn from."""

    language: str
    alphabet: str
    words: bool
    numbers: tuple[str, ...]
    tag_words: tuple[tuple[str, str], ...]
    tag_brackets: tuple[str, ...]
    list_brackets: tuple[str, ...]
    list_separators: tuple[str, ...]
    order_separators: tuple[str, ...]
    """Further ones for a list whose order matters: in a set, `1 - 5` would be read as a range."""
    stand_alone: tuple[str, ...]
    texts: dict[str, dict[str, tuple[Text, ...]]]

    @cached_property
    def _alone(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in self.stand_alone]

    def separators(self, label: str) -> tuple[str, ...]:
        """Return what may stand between the numbers of a list in a text of this label."""
        return (
            (*self.list_separators, *self.order_separators)
            if label == "permute.explicit"
            else self.list_separators
        )

    def stands_alone(self, prompt: str) -> bool:
        """Say whether a prompt speaks of other messages, and must not be combined."""
        return any(pattern.search(prompt) for pattern in self._alone)

    @cached_property
    def _by_opening(self) -> dict[str, list[tuple[Text, re.Pattern[str]]]]:
        """Texts by what they begin with, up to the first slot, cut to `_SHORT` letters."""
        by_opening: dict[str, list[tuple[Text, re.Pattern[str]]]] = {}
        for forms in self.texts.values():
            for texts in forms.values():
                for text in texts:
                    opening = _SLOT.split(text.wording, maxsplit=1)[0][:_SHORT]
                    by_opening.setdefault(opening, []).append((text, _pattern(text.wording)))
        return by_opening

    def read(self, line: str) -> list[Meta]:
        """Return every text among the phrasings that this line can be."""
        readings = []
        for length in range(min(_SHORT, len(line)), -1, -1):
            for text, pattern in self._by_opening.get(line[:length], ()):
                if (match := pattern.fullmatch(line)) is not None:
                    readings.append(Meta(text, match.groupdict()))
        return readings


_SHORT = 12


def _pattern(wording: str) -> re.Pattern[str]:
    parts = _SLOT.split(wording)
    return re.compile(
        "".join(
            PATTERNS[part] if number % 2 else re.escape(part) for number, part in enumerate(parts)
        )
    )


# --- reading phrasings ----------------------------------------------------------------------------

LISTS = (
    "numbers",
    "tag_words",
    "tag_brackets",
    "list_brackets",
    "list_separators",
    "order_separators",
    "stand_alone",
)
MAY_BE_ABSENT = ("order_separators", "stand_alone")
_ONE_SLOT = {"numbers": "n", "tag_brackets": "tag", "list_brackets": "items"}
_KNOWN = ("extends", "language", "alphabet", "words", *LISTS, "texts")


def load_phrasings(path: str | None = None) -> Phrasings:
    """Read the built-in phrasings, with the user's file laid over them.

    Raises: RecipeError naming every text and list of the file that cannot be used.
    """
    values = _read_yaml(OURS)
    ours: set[tuple[str, str, str]] = set()
    if path is not None:
        theirs = _read_yaml(Path(path).expanduser())
        _refuse_unknown(theirs, path)
        if theirs.get("extends") == "none":
            values = theirs
        else:
            ours, values = _wordings(values), _joined(values, theirs)
    name = path or OURS.name
    problems = list(_problems(values))
    if problems:
        raise RecipeError(
            f"{name} cannot be used as phrasings", "see docs/mosaic.md for its form", problems
        )
    phrasings = _build(values)
    _refuse_ambiguous(phrasings, name, ours)
    return phrasings


def _wordings(values: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Every text, with its rule and its form."""
    return {
        (label, form, line)
        for label, forms in values["texts"].items()
        for form, lines in forms.items()
        for line in lines
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = read_document(text_of(path, str(path), "phrasings"), str(path), "phrasings")
    except OSError as error:
        raise RecipeError(
            f"the phrasings of {path} cannot be read: {error.strerror}", "check `phrasings`"
        ) from error
    if document.problems:
        raise RecipeError(f"{path} cannot be used as phrasings", "fix the file", document.problems)
    if not document.values:
        raise RecipeError(
            f"{path} holds no `key: value` lines, so no phrasings",
            "see docs/mosaic.md for its form",
        )
    return document.values


def _refuse_unknown(values: dict[str, Any], path: str) -> None:
    problems = [
        Problem("unknown key", path, str(key), did_you_mean(str(key), _KNOWN))
        for key in values
        if key not in _KNOWN
    ]
    texts = values.get("texts")
    labels = list(texts) if isinstance(texts, dict) else []
    for label in labels:
        if label not in SLOTS:
            problems.append(
                Problem("no such rule", path, f"texts.{label}", did_you_mean(str(label), SLOTS))
            )
    if values.get("extends", "en") not in ("en", "none"):
        problems.append(Problem("expected `en` or `none`", path, "extends"))
    if problems:
        raise RecipeError(
            f"{path} cannot be used as phrasings", "see docs/mosaic.md for its form", problems
        )


def _joined(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The built-in lists with the user's behind them; single values are replaced."""
    joined: dict[str, Any] = {
        **ours,
        **{key: theirs[key] for key in ("language", "alphabet", "words") if key in theirs},
    }
    for key in LISTS:
        joined[key] = _both(ours[key], theirs.get(key) or [])
    texts = {}
    for label, forms in ours["texts"].items():
        texts[label] = {form: list(lines) for form, lines in forms.items()}
    more = theirs.get("texts") or {}
    for label, forms in more.items() if isinstance(more, dict) else ():
        if not isinstance(forms, dict):
            texts[label] = forms  # told as a problem
            continue
        for form, lines in forms.items():
            texts[label][form] = _both(texts[label].get(form, []), lines or [])
    joined["texts"] = texts if isinstance(more, dict) else more
    return joined


def _both(ours: list[Any], theirs: Any) -> Any:
    return (
        [*ours, *(line for line in theirs if line not in ours)]
        if isinstance(theirs, list)
        else theirs
    )


def _problems(values: dict[str, Any]) -> list[Problem]:
    problems = [problem for key in LISTS for problem in _list_problems(key, values.get(key))]
    alphabet, words, texts = (
        values.get("alphabet", ""),
        values.get("words", True),
        values.get("texts"),
    )
    if reason := _alphabet_problem(alphabet):
        problems.append(Problem(reason, key="alphabet"))
    if not isinstance(words, bool):
        problems.append(Problem(f"expected true or false, found {words!r}", key="words"))
    if not isinstance(texts, dict):
        wrong = (
            "is missing"
            if texts is None
            else f"expected `rule: {{form: [texts]}}`, found {type(texts).__name__}"
        )
        return [*problems, Problem(wrong, key="texts")]
    idle = {*(() if alphabet else BY_ALPHABET), *(() if words else BY_WORDS)}
    for label, forms in SLOTS.items():
        given = texts.get(label)
        if given is None and label in idle:
            continue
        if not isinstance(given, dict):
            problems.append(
                Problem(
                    f"expected {' and '.join(forms)}, each with a list of texts",
                    key=f"texts.{label}",
                )
            )
            continue
        for form, slots in forms.items():
            lines = given.get(form)
            if not isinstance(lines, list) or not lines:
                wrong = (
                    "needs at least one text"
                    if not lines
                    else f"expected a list of texts, found {lines!r}"
                )
                problems.append(Problem(wrong, key=f"texts.{label}.{form}"))
                continue
            problems += [
                problem for line in lines for problem in _text_problems(label, form, line, slots)
            ]
        for form in given:
            if form not in forms:
                problems.append(
                    Problem(f"expected {' and '.join(forms)}", key=f"texts.{label}.{form}")
                )
    return problems


def _alphabet_problem(alphabet: Any) -> str:
    if not isinstance(alphabet, str):
        return f"expected a text of letters, found {alphabet!r}"
    twice = sorted({letter for letter in alphabet if alphabet.count(letter) > 1})
    if twice:
        return f"{', '.join(twice)} stands in it twice: a letter has one place"
    if alphabet != alphabet.casefold():
        return (
            f"{alphabet!r} has capitals, and letters are compared without regard to case: write "
            "small ones"
        )
    return ""


def _list_problems(key: str, values: Any) -> list[Problem]:
    if key in MAY_BE_ABSENT and not values:
        return []
    if not isinstance(values, list) or not values:
        return [Problem("needs a list with something in it", key=key)]
    problems = []
    for value in values:
        if key == "tag_words":
            if not (
                isinstance(value, list)
                and len(value) == 2
                and all(_is_line(word) for word in value)
            ):
                problems.append(Problem(f"expected two words, found {value!r}", key=key))
            elif value[0] == value[1]:
                problems.append(Problem(f"both words are {value[0]!r}", key=key))
        elif not isinstance(value, str) or "\n" in value or not value:
            problems.append(Problem(f"expected a text of one line, found {value!r}", key=key))
        elif key == "tag_brackets" and value[0].isspace():
            problems.append(Problem(f"{value!r} begins with a blank", key=key))
        elif key in _ONE_SLOT and _SLOT.findall(value) != [_ONE_SLOT[key]]:
            problems.append(Problem(f"{value!r} needs {{{_ONE_SLOT[key]}}} once", key=key))
        elif key == "numbers" and (value[value.index("{n}") + 3 :][:1].isdigit() or value == "{n}"):
            problems.append(Problem(f"{value!r} does not mark a number off from a text", key=key))
        elif key == "numbers" and value[: value.index("{n}")][-1:].isdigit():
            problems.append(Problem(f"{value!r} has a digit before the number", key=key))
        elif key in ("list_separators", "order_separators", "list_brackets") and re.search(
            r"\w", value.replace("{items}", "")
        ):
            problems.append(
                Problem(f"{value!r} has letters or digits, which belong in the texts", key=key)
            )
        elif key == "stand_alone" and (reason := _regex_problem(value)):
            problems.append(Problem(f"{value!r} is not a regular expression: {reason}", key=key))
    return problems


def _regex_problem(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        return str(error)
    return ""


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and value.strip() == value != "" and "\n" not in value


def _text_problems(label: str, form: str, line: Any, slots: set[str]) -> list[Problem]:
    key = f"texts.{label}.{form}"
    if not _is_line(line):
        return [
            Problem(
                f"expected a text of one line without blanks around it, found {line!r}", key=key
            )
        ]
    given = _SLOT.findall(line)
    if sorted(given) != sorted(slots):
        wanted = " and ".join(f"{{{slot}}}" for slot in sorted(slots)) or "no slot"
        return [Problem(f"{line!r} needs {wanted}, each once", key=key)]
    return []


def _build(values: dict[str, Any]) -> Phrasings:
    texts: dict[str, dict[str, tuple[Text, ...]]] = {label: {} for label in values["texts"]}
    for label, forms in values["texts"].items():
        for form, lines in forms.items():
            texts[label][form] = tuple(Text(label, form, line) for line in lines)
    return Phrasings(
        language=str(values.get("language", "")),
        alphabet=str(values.get("alphabet", "")),
        words=bool(values.get("words", True)),
        numbers=tuple(values["numbers"]),
        tag_words=tuple((begin, end) for begin, end in values["tag_words"]),
        tag_brackets=tuple(values["tag_brackets"]),
        list_brackets=tuple(values["list_brackets"]),
        list_separators=tuple(values["list_separators"]),
        order_separators=tuple(values.get("order_separators") or ()),
        stand_alone=tuple(values.get("stand_alone") or ()),
        texts=texts,
    )


def _refuse_ambiguous(phrasings: Phrasings, name: str, ours: set[tuple[str, str, str]]) -> None:
    """Refuse phrasings in which one line could mean two things; of two texts that clash, one of
    `ours` is not the one to blame."""
    problems: list[Problem] = []
    blameless: list[Problem] = []
    for label, forms in phrasings.texts.items():
        for form, texts in forms.items():
            for text in texts:
                line = text.filled(**_SAMPLES)
                others = {(meta.text.label, meta.text.form) for meta in phrasings.read(line)} - {
                    (label, form)
                }
                if others:
                    meant = ", ".join(f"{other} ({kind})" for other, kind in sorted(others))
                    problem = Problem(
                        f"{text.wording!r} can also be read as {meant}", key=f"texts.{label}.{form}"
                    )
                    (blameless if (label, form, text.wording) in ours else problems).append(problem)
    if problems or blameless:
        raise RecipeError(
            f"{name} cannot be used as phrasings", "change the wording", problems or blameless
        )
