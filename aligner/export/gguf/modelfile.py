"""A Modelfile for Ollama: the file, the tokens that end an answer, and the chat template in
Ollama's own language.

Ollama does not run Jinja. So the template is tried on a few conversations, and what it writes
before and after the text of each role becomes a template of Ollama's. It is used only where that
writes every one of the conversations exactly; otherwise it is left out, and Ollama recognizes the
template in the GGUF file if it is one that it knows. Tools and thinking are not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from aligner.tokenization.chat_template import has_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM, USER, ASSISTANT = "S1s", "U1u", "A1a"
"""Texts that no template writes by itself."""

Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Pieces:
    """What a template writes: before and after the text of each role, before the answer that is to
    be written, and before all where no system message is given."""

    first: str
    without_system: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    opening: str

    def rendered(self, messages: Turns) -> str:
        """Write a conversation, as Ollama will."""
        parts = [self.first]
        if messages[0]["role"] != "system":
            parts.append(self.without_system)
        for message in messages:
            before, after = getattr(self, message["role"])
            parts.append(f"{before}{message['content']}{after}")
        return "".join([*parts, self.opening])

    def holds_marks(self) -> bool:
        """Say whether a piece holds what Ollama would read as a mark of its own."""
        texts = [self.first, self.without_system, self.opening]
        texts += [*self.system, *self.user, *self.assistant]
        return any(mark in text for text in texts for mark in ("{{", "}}", '"""'))

    def to_ollama(self) -> str:
        """Return the template in Ollama's language."""
        turns = []
        for role in ("system", "user", "assistant"):
            before, after = getattr(self, role)
            branch = "if" if role == "system" else "else if"
            turns.append(f'{{{{ {branch} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        start = self.first
        if self.without_system:
            start += (
                '{{ if ne (index .Messages 0).Role "system" }}' + self.without_system + "{{ end }}"
            )
        body = "{{ range .Messages }}" + "".join(turns) + "{{ end }}{{ end }}"
        return f"{start}{body}{self.opening}"


def modelfile(file: str, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> str:
    """Return the text of a Modelfile for a GGUF file of this name beside it."""
    lines = [f"FROM ./{file}"]
    pieces = pieces_of(tokenizer) if has_template(tokenizer) else None
    if pieces is not None:
        lines.append(f'TEMPLATE """{pieces.to_ollama()}"""')
    elif has_template(tokenizer):
        lines.append("# No TEMPLATE: the chat template does more than Ollama's language can say.")
        lines.append("# It stands in the GGUF file, and Ollama recognizes those that it knows.")
    for stop in stops:
        lines.append(f'PARAMETER stop "{_quoted(tokenizer.convert_ids_to_tokens(stop))}"')
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces | None:
    """Return what a template consists of; None for one that does more."""
    if "strftime_now" in str(tokenizer.chat_template):  # today's date would stay in it
        return None
    system, user, answer = (
        [{"role": role, "content": text}]
        for role, text in (("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT))
    )
    tried = [
        user,
        [*system, *user],
        [*user, *answer, *user],
        [*system, *user, *answer, *user, *answer, *user],
    ]
    try:
        pieces = _cut(tokenizer, system, user, answer)
        fits = all(_as_text(tokenizer, turns) == pieces.rendered(turns) for turns in tried)
    except (TemplateError, ValueError, TypeError):  # a template that wants other roles
        return None
    return pieces if fits and not pieces.holds_marks() else None


def _cut(tokenizer: Any, system: Turns, user: Turns, answer: Turns) -> Pieces:
    """Cut renderings at the texts of the messages; what ends a conversation ends a turn."""
    closed = _as_text(tokenizer, [*system, *user, *answer, *user], opened=False)
    opening = _as_text(tokenizer, [*system, *user, *answer, *user]).removeprefix(closed)
    before, rest = closed.split(SYSTEM, 1)
    after_system, rest = rest.split(USER, 1)
    after_user, rest = rest.split(ASSISTANT, 1)
    after_answer = rest.split(USER, 1)[0]
    start, user_end = _as_text(tokenizer, user, opened=False).split(USER, 1)
    answer_end = _as_text(tokenizer, [*user, *answer], opened=False).split(ASSISTANT, 1)[1]
    user_start = after_answer.removeprefix(answer_end)
    start = start.removesuffix(user_start)
    has_default = not before.startswith(start)  # a system message that nobody gave
    first = "" if has_default else start
    return Pieces(
        first=first,
        without_system=start if has_default else "",
        system=(before.removeprefix(first), after_system.removesuffix(user_start)),
        user=(user_start, user_end),
        assistant=(after_user.removeprefix(user_end), answer_end),
        opening=opening,
    )


def _as_text(tokenizer: Any, turns: Turns, *, opened: bool = True) -> str:
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
    assert isinstance(text, str)
    bos = tokenizer.bos_token
    # llama.cpp puts the start token before every text by itself, where the tokenizer does
    if bos and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(bos)
    return text
