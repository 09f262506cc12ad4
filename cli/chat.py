"""`aligner chat MODEL`: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import content, say, write_content
from .models import (
    DtypeOption,
    MaxNewTokens,
    QuantizationOption,
    Seed,
    Temperature,
    TrustRemoteCode,
    check_sampling,
    for_writing,
    load_policy_of,
    say_dtype,
)

if TYPE_CHECKING:
    from aligner.generation.conversation import Answer, Conversation

COMMANDS = {
    "/reset": "forget what was said",
    "/system TEXT": "set the system message and forget what was said; without TEXT, remove it",
    "/save FILE": "add the conversation to a file, as a row that `aligner sft` reads",
    "/help": "this list; a message that begins with a slash is typed with two",
    "/exit": "leave (as Ctrl-D does); Ctrl-C ends an answer",
}
NARROWEST = 80
"""Columns of a terminal in which two answers stand side by side."""


def chat(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a folder (also an adapter), a hub id.")
    ],
    compare: Annotated[
        str | None,
        typer.Option("--compare", metavar="OTHER", help="Let a second model answer beside it."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus; 1 is off.")
    ] = 1.0,
    seed: Seed = 0,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model, or to two of them.

    Answers appear as they are written. Ctrl-C ends an answer, Ctrl-D the chat. Lines of a pipe
    are messages, and only answers go to stdout then. Commands: /reset, /system TEXT, /save FILE,
    /help, /exit.

    Example: aligner chat runs/dpo --compare runs/sft --temperature 0
    """
    check_sampling(temperature, top_p)
    from aligner.export.found import find_model

    names = [model] if compare is None else [model, compare]
    found = [find_model(name) for name in names]

    from .render import Screen

    with Screen() as screen:
        from aligner.generation.conversation import Conversation
        from aligner.generation.sampling import Sampling
        from aligner.models.tokenizers import load_tokenizer

        sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        seats = []
        for name, one in zip(names, found):
            screen.start(f"loading {name}")
            section = one.section(
                dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code
            )
            tokenizer = load_tokenizer(section)
            section = for_writing(section, tokenizer, screen.on_event)
            policy = load_policy_of(section, tokenizer)
            say_dtype(section, policy, screen.on_event)
            seats.append((name, Conversation(policy, tokenizer, sampling, system)))
    _Chat(seats).run()


class _Chat:
    """The loop: read a line, obey or answer."""

    def __init__(self, seats: list[tuple[str, Conversation]]) -> None:
        self.seats = seats
        self.is_live = sys.stdin.isatty() and sys.stdout.isatty()

    def run(self) -> None:
        """Until the input ends, or somebody leaves."""
        if self.is_live:
            say("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the chat", err=True)
        for line in self._lines():
            text = line.strip()
            if text in ("/exit", "/quit", "/bye"):
                return
            if not text:
                continue
            if text.startswith("/") and not text.startswith("//"):
                self._obey(text)
            else:
                self._answer(text.removeprefix("/") if text.startswith("//") else text)

    def _lines(self) -> Iterator[str]:
        """The lines that are typed, or those of a pipe."""
        if not self.is_live:
            yield from sys.stdin
            return
        import readline  # so that a line can be edited, and brought back

        assert readline
        while True:
            try:
                yield input("> ")
            except EOFError:
                say(err=True)
                return
            except KeyboardInterrupt as stop:
                if type(stop) is not KeyboardInterrupt:
                    raise
                say(err=True)
                say("(Ctrl-D or /exit leaves)", err=True)

    def _obey(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/reset":
            for _, one in self.seats:
                one.reset()
            say("(what was said is forgotten)", err=True)
        elif name == "/system":
            for _, one in self.seats:
                one.reset(rest)
            done = "set" if rest else "removed"
            say(f"(system message {done}; what was said is forgotten)", err=True)
        elif name == "/save":
            self._save(rest)
        elif name == "/help":
            for command, about in COMMANDS.items():
                say(f"{command.ljust(14)}{about}", err=True)
        else:
            say(f"there is no command {name}; /help lists them", err=True)

    def _save(self, place: str) -> None:
        """Add the conversation to a file; of two models a row each, which names it."""
        from aligner.runs.files import json_line

        rows: list[dict[str, Any]] = [{"messages": one.whole} for _, one in self.seats]
        if not place or not self.seats[0][1].messages:
            missing = "nothing was said yet" if place else "say where: /save talks.jsonl"
            say(missing, err=True)
            return
        if len(self.seats) > 1:
            rows = [{**row, "model": name} for row, (name, _) in zip(rows, self.seats)]
        file = Path(place).expanduser()
        try:
            with file.open("a", encoding="utf-8", newline="\n") as stream:
                stream.writelines(map(json_line, rows))
        except OSError as error:
            say(f"{file} cannot be written: {error.strerror}", err=True)
            return
        say(f"(added to {file})", err=True)

    def _answer(self, text: str) -> None:
        from aligner.errors import DataError

        try:
            if len(self.seats) == 1:
                self._answer_alone(text)
            else:
                self._answer_both(text)
        except DataError as error:
            hint = f" ({error.hint}; /reset makes room)" if error.hint else ""
            say(f"{error.message}{hint}", err=True)

    def _answer_alone(self, text: str) -> None:
        answer = self.seats[0][1].ask(text, write_content)
        write_content("\n")
        self._tell(answer)

    def _answer_both(self, text: str) -> None:
        """Both answers: side by side where there is room, below their names elsewhere."""
        answers = []
        for name, one in self.seats:
            if self.is_live:
                say(f"{name} writes ...", err=True)
            answers.append(one.ask(text, lambda _: None))
        texts = [answer.text for answer in answers]
        columns = shutil.get_terminal_size().columns
        if self.is_live and columns >= NARROWEST:
            for line in side_by_side([name for name, _ in self.seats], texts, columns):
                say(line)
        else:
            for (name, _), said in zip(self.seats, texts):
                say(f"{name}:", bold=self.is_live or None)
                write_content(f"{said}\n")
        for answer in answers:
            self._tell(answer)

    def _tell(self, answer: Answer) -> None:
        """How an answer ended, where it did not end by itself; on a terminal how fast it came."""
        rate = answer.num_tokens / max(answer.seconds, 1e-9)
        ended = {"length": "cut at --max-new-tokens", "interrupted": "interrupted", "stop": ""}
        note = ended[answer.finish_reason]
        if self.is_live:
            note = f"{answer.num_tokens} tokens, {rate:.1f}/s{f', {note}' if note else ''}"
        if note:
            say(f"({note})", err=True)


def side_by_side(names: list[str], texts: list[str], columns: int) -> list[str]:
    """Return the lines of two texts in two columns below their names."""
    width = (columns - 3) // 2
    heads = [f"{name}\n{'-' * min(len(name), width)}" for name in names]
    sides = [_wrapped(f"{head}\n{text}", width) for head, text in zip(heads, texts)]
    height = max(map(len, sides))
    left, right = (side + [""] * (height - len(side)) for side in sides)
    return [f"{a.ljust(width)} | {b}".rstrip() for a, b in zip(left, right)]


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, none wider than a column."""
    lines: list[str] = []
    for line in content(text).expandtabs(4).split("\n"):
        lines += textwrap.wrap(
            line, width, drop_whitespace=False, replace_whitespace=False, break_on_hyphens=False
        ) or [""]
    return lines
