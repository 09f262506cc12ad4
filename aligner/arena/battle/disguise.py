r"""Answers as a judge sees them: without what would tell it who wrote them.

A name is taken out where an answer speaks of itself ("I am Qwen, created by Alibaba Cloud", "As
ChatGPT, I cannot"), and nowhere else: a question about models is answered with their names. What
counts as a name is a list of families and makers, and the names of the two contestants. Both
answers go through the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

WITHHELD = "[name withheld]"

_MODELS = (
    r"chatgpt|gpt-?[1-9o](?:\.\d)?(?:-?[a-z]+)?|claude(?: \d(?:\.\d)?)?(?: (?:opus|sonnet|haiku))?"
    r"|gemini|bard|gemma|llama|alpaca|vicuna|qwen|tongyi qianwen|mistral|mixtral|ministral"
    r"|deepseek|command[- ]r\+?|phi|copilot|grok|ernie(?: bot)?|(?:chat)?glm|kimi|yi"
    r"|openchat|wizardlm|zephyr|olmo|t(?:u|\u00fc)lu|falcon|baichuan|internlm|smollm|stablelm"
    r"|open ?assistant|dolly|koala|nemotron|minimax|doubao|hunyuan|jamba|exaone"
)
_MAKERS = (
    r"openai|anthropic|google(?: deepmind| ai)?|deepmind|meta(?: ai)?|facebook|alibaba(?: cloud)?"
    r"|mistral ai|hugging ?face|microsoft|cohere(?: for ai)?|xai|deepseek(?:-ai| ai)?|baidu"
    r"|zhipu(?: ai)?|moonshot ai|01\.ai|allen (?:institute for )?ai|ai2|ibm|amazon|nvidia|apple"
    r"|tencent|bytedance|stability ai|databricks|lmsys(?: org)?|ai21(?: labs)?|upstage|lg"
    r"|salesforce|tii|minimax"
)
_NUMBER = r"v?\d{1,9}(?:\.\d{1,9}){0,3}[a-z]?"
_SIZE = (
    rf"(?:{_NUMBER})?(?:[- ]{_NUMBER}){{0,4}}"
    r"(?:[- ](?:chat|instruct|turbo|mini|large|small|medium)){0,3}"
)
_MADE = r"(?:made|created|developed|trained|built|designed|provided|fine-?tuned)"
_FILL = (
    r"(?:(?:an?|the|your|called|named|known|as|ai|artificial|intelligence|large|language|model"
    r"|assistant|chatbot|bot|virtual|helpful|friendly)[ ,]{1,3}){0,8}"
)
_SELF = r"\b(?:i am|i'm|i\u2019m|my name is|my name's|you can call me|call me|i go by)"
_END = r"(?![\w-])"
_TAIL = rf"[^.!?\n]{{0,80}}?\b{_MADE} by (?:the )?(?:team at |researchers at )?"

PATTERNS = (
    rf"(?P<before>{_SELF} {_FILL})(?P<name>{{names}})(?:(?P<tail>{_TAIL})(?:{_MAKERS}){_END})?",
    rf"(?P<before>\bas {_FILL})(?P<name>{{names}})(?=,? (?:i|my)\b)",
    rf"(?P<before>\bas {_FILL}{_MADE} by )(?P<name>{_MAKERS}){_END}",
    rf"(?P<before>\bi(?: am|'m|\u2019m| was| have been)(?: an? [^.!?\n]{{0,40}}?)? {_MADE} by )"
    rf"(?P<name>{_MAKERS}){_END}",
)
"""Where an answer names itself or who made it."""

_NO_WORD = re.compile(r"[a-z].*[\d/_.-]|[\d/_.-].*[a-z]", re.IGNORECASE)


def without_names(text: str, contestants: Sequence[str] = ()) -> str:
    """A text with the names withheld that it gives itself. `contestants`: further names, of which
    those count that are more than a word."""
    for pattern in _compiled(tuple(contestants)):
        text = pattern.sub(_withheld, text)
    return text


@lru_cache
def _compiled(contestants: tuple[str, ...]) -> list[re.Pattern[str]]:
    further = [re.escape(name) for name in contestants if _NO_WORD.search(name)]
    names = rf"(?:{'|'.join([*further, _MODELS])}){_SIZE}{_END}"
    return [re.compile(one.replace("{names}", names), re.IGNORECASE) for one in PATTERNS]


def _withheld(found: re.Match[str]) -> str:
    groups = found.groupdict()
    maker = f"{groups['tail']}{WITHHELD}" if groups.get("tail") else ""
    return f"{groups['before']}{WITHHELD}{maker}"
