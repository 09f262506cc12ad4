"""Malformed data: each gives one DataError that names the file, the row or line, what was found and
what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import load_rows
from aligner.errors import DataError

GOOD = '{"prompt": "Name a prime.", "completion": "Seven."}\n'
PAIR = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n'


class Case(NamedTuple):
    name: str
    content: str | bytes
    says: tuple[str, ...]
    task: Any = "sft"
    file: str = "x.jsonl"
    source: dict[str, Any] | None = None


def chat(*turns: tuple[str, Any]) -> str:
    return (
        json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
        + "\n"
    )


def talk(*turns: tuple[str, Any]) -> str:
    return (
        json.dumps(
            {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
        )
        + "\n"
    )


CHAT = chat(("user", "hi"), ("assistant", "ho"))
TALK = talk(("human", "hi"), ("gpt", "ho"))


def pair(**columns: Any) -> str:
    return json.dumps(columns) + "\n"


ROWS = [
    Case(
        "cut JSON line",
        GOOD + '{"prompt": "a", \n' + GOOD,
        ("x.jsonl:2: broken JSON at column", "1 of 3 rows"),
    ),
    Case(
        "text after an object",
        GOOD + GOOD.strip() + " {}\n",
        ("x.jsonl:2: broken JSON at column", "Extra data"),
    ),
    Case(
        "blank lines keep line numbers",
        GOOD + "\n  \n" + "oops\n",
        ("x.jsonl:4: broken JSON at column 1", "1 of 2"),
    ),
    Case("a list for a row", GOOD + "[1, 2]\n", ("x.jsonl:2: a list, not an object with columns",)),
    Case("a number for a row", GOOD + "7\n", ("x.jsonl:2: a number, not an object",)),
    Case("null for a row", GOOD + "null\n", ("x.jsonl:2: null, not an object",)),
    Case(
        "bytes that are no UTF-8",
        GOOD.encode() + b'{"prompt": "caf\xe9"}\n',
        ("x.jsonl:2: not UTF-8: byte 0xe9 at",),
    ),
    Case(
        "half a surrogate pair",
        GOOD + pair(prompt="a", completion="\ud83d"),
        ("x.jsonl:2: completion holds half a",),
    ),
    Case("deep nesting", GOOD + "[" * 100_000 + "\n", ("x.jsonl:2: broken JSON",)),
    Case("missing completion", GOOD + pair(prompt="a"), ("x.jsonl:2: `completion` is missing",)),
    Case(
        "null completion",
        GOOD + pair(prompt="a", completion=None),
        ("x.jsonl:2: `completion` is null",),
    ),
    Case(
        "empty completion",
        GOOD + pair(prompt="a", completion=" \n"),
        ("x.jsonl:2: completion is empty",),
    ),
    Case("empty prompt", GOOD + pair(prompt="", completion="b"), ("x.jsonl:2: prompt is empty",)),
    Case(
        "number as completion",
        GOOD + pair(prompt="a", completion=4),
        ("x.jsonl:2: completion is a number, not text",),
    ),
    Case(
        "object as prompt",
        GOOD + pair(prompt={"a": 1}, completion="b"),
        ("x.jsonl:2: prompt is an object, not text",),
    ),
    Case(
        "prompt that ends with an answer",
        GOOD + pair(prompt=[{"role": "assistant", "content": "a"}], completion="b"),
        ("x.jsonl:2: prompt ends with a turn of the assistant",),
    ),
    Case(
        "messages as text",
        CHAT + '{"messages": "hi"}\n',
        ("x.jsonl:2: messages is text, not a list of turns",),
    ),
    Case("no messages", CHAT + '{"messages": []}\n', ("x.jsonl:2: messages is an empty list",)),
    Case(
        "a turn as text",
        CHAT + '{"messages": ["hi"]}\n',
        ("x.jsonl:2: turn 1 of messages is text, not an object",),
    ),
    Case(
        "unknown role",
        CHAT + chat(("bot", "hi")),
        ("x.jsonl:2: turn 1 of messages has the role 'bot'", "assistant"),
    ),
    Case(
        "role missing",
        CHAT + '{"messages": [{"content": "a"}]}\n',
        ("x.jsonl:2: turn 1 of messages has the role None",),
    ),
    Case(
        "user has the last word",
        CHAT + chat(("user", "a")),
        ("x.jsonl:2: messages ends with a turn of the user",),
    ),
    Case(
        "assistant speaks first",
        CHAT + chat(("system", "s"), ("assistant", "a")),
        ("x.jsonl:2: messages begins with the assistant",),
    ),
    Case(
        "system alone",
        CHAT + chat(("system", "s")),
        ("x.jsonl:2: messages holds no turn of a user",),
    ),
    Case(
        "empty answer",
        CHAT + chat(("user", "a"), ("assistant", "")),
        ("x.jsonl:2: turn 2 of messages (assistant) is empty",),
    ),
    Case(
        "null content",
        CHAT + chat(("user", None), ("assistant", "b")),
        ("turn 1 of messages (user) is null, not text",),
    ),
    Case(
        "image",
        CHAT + chat(("user", [{"type": "image_url", "image_url": {}}]), ("assistant", "b")),
        ("x.jsonl:2: turn 1 of messages (user) holds a block of type 'image_url'", "only text"),
    ),
    Case(
        "ShareGPT turns under messages",
        CHAT + '{"messages": [{"from": "human", "value": "a"}]}\n',
        ("x.jsonl:2: turn 1 of messages is in ShareGPT form", "`conversations`"),
    ),
    Case(
        "tools that are no JSON",
        CHAT + CHAT.replace("]}", '], "tools": "x"}'),
        ("tools is a string that is not JSON",),
    ),
    Case(
        "unknown speaker",
        TALK + talk(("narrator", "a")),
        ("x.jsonl:2: turn 1 of conversations is from 'narrator'",),
    ),
    Case(
        "null value",
        TALK + talk(("human", None), ("gpt", "b")),
        ("turn 1 of conversations (user) is null",),
    ),
    Case(
        "messages under conversations",
        TALK + CHAT.replace("messages", "conversations"),
        ("x.jsonl:2: turn 1 of conversations has `role`", "columns: {messages: conversations}"),
    ),
    Case(
        "talk without answer",
        TALK + talk(("human", "a")),
        ("x.jsonl:2: conversations ends with a turn of the user",),
    ),
    Case(
        "broken function call",
        TALK + talk(("human", "a"), ("function_call", "f(1)")),
        ("turn 2 of", "function call"),
    ),
    Case(
        "no instruction",
        pair(instruction="a", output="b") + pair(instruction="", output="b"),
        ("x.jsonl:2: instruction is empty",),
    ),
    Case(
        "history that is no pairs",
        pair(instruction="a", output="b") + pair(instruction="a", output="b", history=["q"]),
        ("x.jsonl:2: round 1 of history is not a [question, answer] pair",),
    ),
    Case("empty text", pair(text="a") + pair(text="  "), ("x.jsonl:2: text is empty",)),
    Case(
        "equal answers",
        PAIR + pair(prompt="a", chosen="b", rejected="b"),
        ("x.jsonl:2: chosen and rejected are the same",),
        "preference",
    ),
    Case(
        "text against turns",
        PAIR + pair(prompt="a", chosen="b", rejected=[{"role": "assistant", "content": "c"}]),
        ("x.jsonl:2: chosen is text and rejected is a list",),
        "preference",
    ),
    Case(
        "nothing shared",
        PAIR + pair(chosen="Yes", rejected="No"),
        ("x.jsonl:2: there is no `prompt`, and chosen and rejected share no beginning",),
        "preference",
    ),
    Case(
        "no shared turn",
        PAIR
        + pair(
            chosen=[{"role": "user", "content": "a"}], rejected=[{"role": "user", "content": "b"}]
        ),
        ("x.jsonl:2: there is no `prompt`, and chosen and rejected share no first turn",),
        "preference",
    ),
    Case(
        "one answer is missing",
        PAIR
        + pair(
            chosen=[{"role": "user", "content": "a"}],
            rejected=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        ),
        ("x.jsonl:2: chosen holds nothing after the prompt",),
        "preference",
    ),
    Case(
        "another question inside the answer",
        PAIR
        + pair(
            prompt="a",
            chosen=[{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
            rejected=[{"role": "assistant", "content": "d"}],
        ),
        ("x.jsonl:2: chosen holds a turn of the user",),
        "preference",
    ),
    Case(
        "prompt and turns disagree",
        PAIR
        + pair(
            prompt="z",
            chosen=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            rejected=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
        ),
        ("x.jsonl:2: prompt is not what the user asks in chosen and rejected",),
        "preference",
    ),
    Case(
        "weight of nothing",
        PAIR + PAIR.replace("}", ', "weight": 0}'),
        ("x.jsonl:2: weight is 0,",),
        "preference",
    ),
    Case(
        "answer as a list",
        pair(prompt="a") + pair(prompt="a", answer=[4]),
        ("x.jsonl:2: answer is a list",),
        "prompts",
    ),
    Case(
        "too many fields",
        "prompt,completion\na,b\nc,d,e\n",
        ("x.csv:2: 3 fields where the header has 2",),
        file="x.csv",
    ),
    Case(
        "too few fields",
        "prompt,completion\na,b\nc\n",
        ("x.csv:2: 1 fields where the header has 2",),
        file="x.csv",
    ),
    Case(
        "Latin-1 in CSV",
        b"prompt,completion\na,b\nc,\xe9\n",
        ("x.csv:2: completion is not UTF-8: byte 0xe9",),
        file="x.csv",
    ),
    Case("item of a list", f"[{GOOD}, 3]", ("x.json:2: a number, not an object",), file="x.json"),
    Case(
        "Latin-1 in text",
        b"a\n\xe9\n",
        ("x.txt:2: text is not UTF-8: byte 0xe9 at character 1",),
        file="x.txt",
    ),
]

FILES = [
    Case("empty file", "", ("x.jsonl holds no rows",)),
    Case("blank file", "\n\n", ("x.jsonl holds no rows",)),
    Case("empty list", "[]", ("x.json holds no rows",), file="x.json"),
    Case("header alone", "prompt,completion\n", ("x.csv holds no rows",), file="x.csv"),
    Case(
        "list in a .jsonl",
        f"[\n{GOOD}]\n",
        ("x.jsonl is a JSON list", "give it the extension .json"),
    ),
    Case("broken list", f"[\n{GOOD}{GOOD}]", ("x.json:3: broken JSON at column 1",), file="x.json"),
    Case(
        "one object", '{\n"data": []}', ("x.json is one JSON object (keys: data)",), file="x.json"
    ),
    Case(
        "Latin-1 in a list",
        b'[\n{"prompt": "\xe9"}]',
        ("x.json:2 is not UTF-8: byte 0xe9",),
        file="x.json",
    ),
    Case("UTF-16", GOOD.encode("utf-16"), ("x.jsonl is UTF-16", "iconv")),
    Case("no gzip", GOOD, ("x.jsonl.gz is broken or cut off as a gzip file",), file="x.jsonl.gz"),
    Case(
        "cut gzip",
        gzip.compress(GOOD.encode() * 9)[:-12],
        ("x.jsonl.gz is broken or cut off",),
        file="x.jsonl.gz",
    ),
    Case("no Parquet", GOOD, ("x.parquet is broken as a Parquet file",), file="x.parquet"),
    Case("open quote", 'prompt,completion\na,"b\n', ("x.csv:2: broken CSV",), file="x.csv"),
    Case(
        "semicolons",
        "prompt;completion\na;b\n",
        ("x.csv: the columns are not separated by commas",),
        file="x.csv",
    ),
    Case(
        "a column twice",
        "text,text\na,b\n",
        ("x.csv: the header names 'text' more than once",),
        file="x.csv",
    ),
    Case("unknown kind", GOOD, ("files of this kind cannot be read", ".jsonl"), file="x.xlsx"),
    Case(
        "split of a file",
        GOOD,
        ("`split: test` has no meaning there", "remove `split`"),
        source={"split": "test"},
    ),
    Case("subset of a file", GOOD, ("`subset: a` has no meaning there",), source={"subset": "a"}),
    Case(
        "unknown columns",
        pair(question="a", answer="b"),
        (
            "question (text)",
            "columns: {prompt: question, completion: answer}",
            "data.train.columns.prompt=",
            "--column prompt=question --column completion=answer",
        ),
    ),
    Case(
        "pairs given to sft",
        PAIR,
        ("holds preference pairs", "columns: {prompt: prompt, completion: chosen}"),
    ),
    Case(
        "conversational pairs given to sft",
        pair(chosen=[{"role": "user", "content": "a"}], rejected=[]),
        ("holds preference pairs", "columns: {messages: chosen}"),
    ),
    Case(
        "answers given to dpo",
        GOOD,
        ("holds prompt_completion rows", "chosen: ..., rejected: ..."),
        "preference",
    ),
    Case(
        "chats given to dpo",
        CHAT,
        ("holds messages rows", "`chosen` and `rejected`", "aligner sft"),
        "preference",
    ),
    Case(
        "prompts given to sft",
        pair(prompt="a"),
        ("holds prompt rows", "columns: {prompt: prompt, completion: ...}"),
    ),
    Case(
        "text given as prompts", pair(text="a"), ("holds text rows", "this task takes"), "prompts"
    ),
    Case(
        "two forms",
        pair(text="a", instruction="b", output="c"),
        ("alpaca (`instruction` + `output`)", "`format: alpaca`"),
    ),
    Case(
        "a mixture",
        GOOD * 2 + CHAT,
        ("several forms in one source: 2 prompt_completion, 1 messages", "file of its own"),
    ),
    Case(
        "given form not there",
        GOOD,
        ("form `messages` needs the columns `messages`",),
        source={"format": "messages"},
    ),
    Case(
        "given form not for the task", GOOD, ("holds preference",), source={"format": "preference"}
    ),
    Case(
        "mapped column not there",
        pair(question="a", answer="b"),
        ("no row has a column `qestion` (for `prompt`)", "did you mean `question`?"),
        source={"columns": {"prompt": "qestion", "completion": "answer"}},
    ),
    Case(
        "nested column not there",
        pair(prompt="a", good={"text": "b"}, bad={"text": "c"}),
        ("no row has a column `good.txt`", "did you mean `good.text`?"),
        "preference",
        source={"columns": {"chosen": "good.txt", "rejected": "bad.text"}},
    ),
    Case(
        "unknown target",
        GOOD,
        ("'promt' is not a name that a form uses", "did you mean `prompt`?"),
        source={"columns": {"promt": "prompt"}},
    ),
    Case(
        "no function named",
        GOOD,
        ("does not name a function", "path/to/file.py:name"),
        source={"function": "f.py"},
    ),
    Case("no function file", GOOD, ("there is no file none.py",), source={"function": "none.py:f"}),
]


def load(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> DataError:
    monkeypatch.chdir(folder)
    content = case.content if isinstance(case.content, bytes) else case.content.encode()
    Path(case.file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(
            Data(train=[{"path": case.file, **(case.source or {})}], **data), case.task, seed=0
        )
    return caught.value


@pytest.mark.parametrize("case", ROWS, ids=[case.name for case in ROWS])
def test_a_broken_row_is_named_with_its_file_and_number(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = load(case, tmp_path, monkeypatch)
    for part in case.says:
        assert part in str(error)
    assert len(error.problems) == 1
    assert "on_bad_row: drop" in error.hint


@pytest.mark.parametrize("case", ROWS, ids=[case.name for case in ROWS])
def test_a_dropped_row_is_counted_and_listed(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(case.file).write_bytes(
        case.content if isinstance(case.content, bytes) else case.content.encode()
    )
    loaded = load_rows(
        Data(train=[{"path": case.file, **(case.source or {})}], on_bad_row="drop"),
        case.task,
        seed=0,
    )
    entry = loaded.ledger.sources[0]
    assert entry.bad == len(entry.bad_rows) == 1
    assert f"{entry.bad_rows[0].where}: {entry.bad_rows[0].reason}".startswith(case.file)
    assert entry.rows_read - 1 == len(loaded.train) > 0


@pytest.mark.parametrize("case", FILES, ids=[case.name for case in FILES])
def test_an_unusable_source_says_what_was_found_and_what_to_do(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = load(case, tmp_path, monkeypatch, on_bad_row="drop")
    for part in case.says:
        assert part in str(error)
    assert error.hint


def test_all_broken_rows_are_counted_and_the_first_twenty_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = load(Case("many", GOOD + "oops\n" * 50, ()), tmp_path, monkeypatch)
    assert error.message == "50 of 51 rows of x.jsonl are broken (the first 20 are listed)"
    assert [problem.where for problem in error.problems] == [
        f"x.jsonl:{line}" for line in range(2, 22)
    ]


def test_when_every_row_is_broken_dropping_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = load(Case("all", "oops\n" * 3, ()), tmp_path, monkeypatch, on_bad_row="drop")
    assert "3 of 3 rows of x.jsonl are broken" in error.message
    assert "no row is usable" in error.hint


def test_broken_sources_are_all_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("")
    Path("b.jsonl").write_text(pair(question="a", answer="b"))
    with pytest.raises(DataError) as caught:
        load_rows(Data(train=["a.jsonl", "b.jsonl", "c.jsonl"]), "sft", seed=0)
    assert caught.value.message == "3 sources cannot be used"
    assert all(
        part in str(caught.value)
        for part in ("a.jsonl holds no rows", "question (text)", "there is no file")
    )


def test_broken_rows_of_several_sources_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(GOOD + "oops\n")
    Path("b.jsonl").write_text(GOOD + GOOD + "oops\n")
    with pytest.raises(DataError) as caught:
        load_rows(Data(train="a.jsonl", eval="b.jsonl"), "sft", seed=0)
    assert [problem.where for problem in caught.value.problems] == ["a.jsonl:2", "b.jsonl:3"]
