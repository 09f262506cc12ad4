"""Texts as they are compared: what people would call the same words become the same words.

Done as in GPT-3's and lm-eval's search for overlaps (arXiv 2005.14165, appendix C): Unicode NFKC,
letter case and punctuation off, words. Beyond it: signs that change what is asked stay, each as a
word (mathematical and currency signs, `^`, `%`, a decimal point, `-*/` beside a digit, the `#` of
`C#`), so that 2+3 is not 2-3; invisible characters go; and where a script writes no blanks, each
Chinese character or kana is a word. Thai, Lao, Khmer and Burmese are cut at blanks only.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufe00-\ufe0f\ufeff]")
_APOSTROPHES = str.maketrans("", "", "'\u2019`")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u0900-\u0963\u0966-\u0dff\u0e30-\u0e4e\u0eb0-\u0ecd"
)
_LETTER = rf"(?![{_CJK}_])[\w{_MARKS}]"
_WORD = re.compile(
    rf"\d+(?:[.,]\d+)*(?:{_LETTER})*"
    rf"|[{_CJK}]"
    rf"|(?:{_LETTER})+#?"
    r"|[+<=>|~\u00ac\u00b1\u00d7\u00f7\u2200-\u22ff^%$\u00a3\u00a5\u20a0-\u20bf]"
    r"|(?:(?<=\d)|(?<=\d[ ]))[-*/\u2212]|[-*/\u2212](?=[ ]?\d)"
)


def words_of(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return _WORD.findall(text.casefold().translate(_APOSTROPHES))


def normal_text(text: str) -> str:
    """The words of a text, with a blank between each two: equal for texts that say the same."""
    return " ".join(words_of(text))
