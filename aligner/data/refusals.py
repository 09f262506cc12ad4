"""Whether a text is a refusal, by how it begins. English, and of the models of their time."""

from __future__ import annotations

import re

from aligner.data.reasoning import without_reasoning

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201b\u2032\u00b4`\uff07", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\uff02", '"'),
        **dict.fromkeys("\uff1f\ufe56\u061f", "?"),
        "\u00a0": " ",
    }
)
"""Quotes, question marks and a blank, as keyboards with fewer signs write them."""
_INABILITY = (
    r"(?:can'?t|cannot|can not|could not|couldn'?t|won'?t|unable|not able|not allowed|not equipped|"
    r"(?:don'?t|do not) have the (?:ability|capability|capacity))"
)
_ASSISTANT = r"as an? [^.!?,\n]{0,40}\b(?:ai|chatbot|assistant|(?:large )?language model)\b"
_ACTS = (
    r"(?:assist|help|provide|fulfil|fulfill|comply|answer|create|write|generate|produce|complete|"
    r"do that|do this|engage|discuss|support|share|continue|rewrite|respond|process|access|offer|"
    r"evaluate|judge|rate|score|compare)"
)
_REFUSALS = re.compile(
    rf"(?:i'm|i am|i apologi[sz]e|my apologies|apologies|sorry)[^.!?\n]{{0,60}}[,.;!]? *"
    rf"(?:but )?(?:i[^.!?\n]{{0,40}}|{_ASSISTANT}[^.!?\n]{{0,90}}){_INABILITY}\b"
    rf"|(?:unfortunately, )?i(?:'m| am)? (?:really |simply )?{_INABILITY} (?:to )?"
    rf"(?:\w+ )?{_ACTS}\b"
    rf"|as an? (?:ai|artificial intelligence|(?:large )?language model)[^.!?\n]{{0,60}}"
    rf"(?:{_INABILITY}|don'?t|do not)\b"
)


def plain(text: str) -> str:
    """Return a text without reasoning and outer blanks, in one letter case, with plain quotes and
    question marks."""
    return without_reasoning(text).translate(_PLAIN).strip().casefold()


def refuses(text: str) -> bool:
    """Say whether a text begins as a refusal does: with a regret or a limit of the model, and that
    it will not do what was asked. A regret alone is none: letters of apology begin so."""
    return _REFUSALS.match(plain(text)) is not None
