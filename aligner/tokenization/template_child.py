"""Render short conversations through a chat template in a process that can be stopped (for
`template_probe`).

A file of its own that imports Jinja alone, so that it starts quickly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARACTERS = 10_000_000
"""Of two turns of one letter each."""

QUESTION, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CONVERSATIONS = (
    [QUESTION],
    [QUESTION, ANSWER],
    [{"role": "system", "content": "s"}, QUESTION, ANSWER, QUESTION],
)


class Marks(Extension):
    """`{% generation %} ... {% endgeneration %}`, which transformers knows and Jinja does not."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        """What is marked, as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def open_probe(setup: Any) -> Callable[[Any], str]:
    """Return what renders conversations by a template and says what is wrong: "" or a few words."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: Any = None, separators: Any = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Marks, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=str)

    def probe(given: dict[str, Any]) -> str:
        try:
            template = environment.from_string(given["template"])
        except MemoryError:
            return "it needs too much memory"
        except Exception:  # what else is wrong with a template is reported where it is rendered
            return ""
        return next(
            filter(None, (_rendered(template, talk, given["tokens"]) for talk in CONVERSATIONS)), ""
        )

    return probe


def _rendered(template: Any, messages: list[dict[str, str]], tokens: dict[str, Any]) -> str:
    try:
        text = template.render(
            messages=messages, add_generation_prompt=True, tools=None, documents=None, **tokens
        )
    except MemoryError:
        return "it needs too much memory"
    except Exception:  # a template refuses what it does not know
        return ""
    return f"it writes {len(text):,} characters" if len(text) > MOST_CHARACTERS else ""
