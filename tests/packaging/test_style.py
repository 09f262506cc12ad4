"""House style that a linter does not hold: width, comprehensions, length of modules, and words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("aligner", "cli", "reward_models")
ALL = (*SHIPPED, "recipes", "tests", "benchmarks", "examples")

WIDTH = 100
WIDE = {
    "aligner/losses/dsl/language.py": "what a search tells its language model",
    "aligner/methods/discover/prompts.py": "what a search tells its language model",
    "aligner/methods/discover/seed_objectives.py": "objectives as they are hashed",
    "aligner/toy/tokenizer.py": "a chat template",
    "tests/trainers/test_objectives_in_training.py": "objectives as they are hashed",
    "tests/unit/builders/test_mosaic_engine.py": "rows that are measured",
    "tests/unit/losses/test_language.py": "objectives as they are hashed",
    "tests/unit/losses/test_sandboxed.py": "objectives as they are hashed",
    "tests/unit/reward_models/test_sandboxed_verifiers.py": "programs as answers write them",
}
"""File with wider lines -> which texts those are. Each of their characters counts."""

LONGEST = 450
LONGER = {
    "aligner/builders/mosaic/build.py": (
        590,
        "one build from rows to files; engine, plan and report are beside it",
    ),
    "aligner/builders/mosaic/check.py": (
        690,
        "a second, whole implementation of the grammar, which shares no code with the first",
    ),
    "aligner/builders/select/build.py": (
        610,
        "one selection from prompts to files; the choice itself is beside it",
    ),
    "aligner/launch/command.py": (520, "the launcher's process and its ranks, seen together"),
    "aligner/losses/dsl/parser.py": (550, "one grammar, each rule with its refusal"),
    "aligner/runs/run.py": (510, "the run directory: one object, and all that a kill may leave"),
    "aligner/tokenization/chat_template.py": (520, "one algorithm: which tokens are whose turn's"),
    "aligner/tokenization/encode.py": (520, "every kind of row to tokens, on shared checks"),
}
"""Module with more lines than `LONGEST` -> its own ceiling, and why it is not several."""

OLD_WORDS = {
    "begun with": "started with",
    "anew": "again",
    "begin anew": "start again",
    "mend": "fix",
    "mended": "fixed",
    "no number": "not a number, or NaN",
    "no numbers": "not numbers, or NaN",
    "is told": "gets",
    "goes on": "continues, or resumes",
    "go on with": "continue, or resume",
    "bug of ours": "internal error, please report it",
    "tokenise": "tokenize",
    "data set": "dataset",
}
"""Turn of phrase -> what the field says."""

PRAGMA = re.compile(r"  # (type: ignore|noqa)\b.*")

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def sources(*tops: str, ending: str = "py") -> Iterator[tuple[str, str]]:
    """(path from the root, text) of every file in these folders."""
    for top in tops:
        for path in sorted((ROOT / top).rglob(f"*.{ending}")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def width(line: str) -> int:
    """Columns without a note to a checker; one word, such as a pattern, cannot be broken."""
    return len(PRAGMA.sub("", line)) if " " in line.strip() else 0


def nested(text: str) -> list[int]:
    """Lines of the comprehensions that hold another one."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, COMPREHENSIONS):
            continue
        inside = (child for child in ast.walk(node) if child is not node)
        if any(isinstance(child, COMPREHENSIONS) for child in inside):
            lines.append(node.lineno)
    return lines


def test_no_line_of_python_is_wider_than_the_screen() -> None:
    wide = []
    for path, text in sources(*ALL):
        lines = enumerate(text.split("\n"), start=1)
        wide += [f"{path}:{number}" for number, line in lines if width(line) > WIDTH]
    assert [place for place in wide if place.split(":")[0] not in WIDE] == []
    assert {place.split(":")[0] for place in wide} == set(WIDE), "a file of WIDE needs it no more"


def test_no_comprehension_stands_inside_another_one() -> None:
    found = []
    for path, text in sources(*SHIPPED):
        found += [f"{path}:{line}" for line in nested(text)]
    assert found == []


def test_a_nested_comprehension_is_seen() -> None:
    assert nested(
        "a = [sum(x for x in row) for row in rows]\nb = [x for row in rows for x in row]"
    ) == [1]


def test_long_modules_have_a_reason() -> None:
    lengths = {path: text.count("\n") for path, text in sources(*SHIPPED)}
    long = {path for path, length in lengths.items() if length > LONGEST}
    assert long == set(LONGER), "split it, or say why not; what is short again leaves LONGER"
    grown = {path: lengths[path] for path in long if lengths[path] > LONGER[path][0]}
    assert grown == {}, "what is long already does not grow"


@pytest.mark.parametrize("ending", ["py", "md", "yaml", "html", "css", "js", "jinja"])
def test_the_program_speaks_the_fields_words(ending: str) -> None:
    words = re.compile(rf"\b({'|'.join(OLD_WORDS)})\b")
    found = []
    for path, text in sources(*SHIPPED, ending=ending):
        for number, line in enumerate(text.split("\n"), start=1):
            if match := words.search(line):
                found.append(f"{path}:{number}: `{match[0]}`: {OLD_WORDS[match[0]]}")
    assert found == []
