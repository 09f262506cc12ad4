"""`aligner chat`: a conversation, by lines of a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, save_model
from runner import aligner

from aligner.cli.chat import side_by_side
from aligner.errors import DataError, UsageError
from aligner.generation import conversation as talk
from aligner.generation.conversation import Conversation
from aligner.generation.decode import generate
from aligner.generation.sampling import Sampling
from aligner.models.api import load_model, load_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def chat(model: Path) -> Conversation:
    return conversation(model)


def conversation(model: Path, **settings: Any) -> Conversation:
    sampling = Sampling(**{"max_new_tokens": 5, "temperature": 0.0, **settings})
    return Conversation(load_model(model), load_tokenizer(model), sampling)


def ignore(_: str) -> None:
    """Listen to nothing."""


# --- the conversation -----------------------------------------------------------------------------


def test_an_answer_is_the_one_that_generate_gives(model: Path) -> None:
    one = conversation(model, temperature=1.0, seed=3, max_new_tokens=12)
    expected = generate(
        one.model, one.tokenizer, ["hello"], one.sampling, streams=[0], batch_size=1
    )[0][0]
    assert one.ask("hello", ignore).text == expected.text


def test_the_pieces_are_the_answer(model: Path) -> None:
    one = conversation(model, temperature=1.5, max_new_tokens=40)
    pieces: list[str] = []
    answer = one.ask("hello", pieces.append)
    assert "".join(pieces) == answer.text
    assert len(pieces) > 1
    assert answer.num_tokens == 40
    assert answer.finish_reason == "length"


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = byte_tokenizer()
    pieces: list[str] = []
    written = talk._Written(tokenizer, (2,), pieces.append)
    for token in [*tokenizer("a\u4e2d\U0001f600b", add_special_tokens=False)["input_ids"], 2]:
        written.add(token)
    assert pieces == ["a", "\u4e2d", "\U0001f600", "b"]
    assert written.finish() == "a\u4e2d\U0001f600b"
    assert written.finish_reason == "stop"


def test_what_was_said_is_part_of_the_next_prompt(chat: Conversation) -> None:
    first = chat.ask("one", ignore)
    chat.ask("two", ignore)
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert chat.messages[1]["content"] == first.text
    fresh = [{"role": "user", "content": "two"}]
    expected = generate(chat.model, chat.tokenizer, [[*chat.messages[:2], *fresh]], chat.sampling)
    assert chat.messages[3]["content"] == expected[0][0].text


def test_reset_keeps_the_system_message_and_a_new_one_replaces_it(chat: Conversation) -> None:
    chat.reset("Be kind.")
    chat.ask("one", ignore)
    assert chat.whole[0] == {"role": "system", "content": "Be kind."}
    chat.reset()
    assert chat.whole == [{"role": "system", "content": "Be kind."}]
    chat.reset("")
    assert chat.whole == []


def test_ctrl_c_ends_the_answer_and_keeps_its_beginning(model: Path) -> None:
    one = conversation(model, temperature=1.5, max_new_tokens=200)
    pieces: list[str] = []

    def stop(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = one.ask("hello", stop)
    assert answer.finish_reason == "interrupted"
    assert answer.num_tokens < 200
    assert answer.text.startswith("".join(pieces))
    assert one.messages[-1] == {"role": "assistant", "content": answer.text}
    assert one.ask("again", ignore).finish_reason in ("stop", "length")


def test_interrupted_before_the_first_token_nothing_was_said(
    chat: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "decode_batch", stop)
    assert chat.ask("hello", ignore).finish_reason == "interrupted"
    assert chat.messages == []


def test_sigterm_ends_everything(chat: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    from aligner.cli.endings import Terminated

    def stop(*_: Any) -> None:
        raise Terminated

    monkeypatch.setattr(talk, "decode_batch", stop)
    with pytest.raises(Terminated):
        chat.ask("hello", ignore)


def test_a_conversation_without_room_is_left_as_it_was(chat: Conversation) -> None:
    chat.ask("one", ignore)
    before = list(chat.messages)
    with pytest.raises(DataError, match=r"the conversation has .* tokens, but the model has 512"):
        chat.ask("x" * 600, ignore)
    assert chat.messages == before


def test_a_model_without_a_template_does_not_chat(model: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=None)
    with pytest.raises(UsageError, match="has no chat template: it continues texts"):
        Conversation(load_model(model), tokenizer, Sampling())


# --- the command, through a pipe ------------------------------------------------------------------


def lines(model: Path, text: str, *options: object) -> Any:
    result = aligner(
        "chat", model, "--max-new-tokens", "4", "--temperature", "0", *options, input=text
    )
    assert result.exit_code == 0, result.output
    return result


def test_lines_of_a_pipe_are_messages_and_answers_alone_are_printed(model: Path) -> None:
    result = lines(model, "one\n\ntwo\n")
    one = conversation(model, max_new_tokens=4)
    expected = [one.ask(text, ignore).text for text in ("one", "two")]
    assert result.stdout == "".join(f"{text}\n" for text in expected)
    assert result.stderr.count("(cut at --max-new-tokens)") == 2


def test_a_conversation_is_saved_as_a_row_to_train_on(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    commands = f"/save {file}\n/system Be kind.\none\n/save {file}\n/reset\ntwo\n/save {file}\n"
    result = lines(model, commands)
    assert "nothing was said yet" in result.stderr
    rows = [json.loads(line)["messages"] for line in file.read_text("utf-8").splitlines()]
    assert [[message["role"] for message in row] for row in rows] == [
        ["system", "user", "assistant"]
    ] * 2
    assert [row[1]["content"] for row in rows] == ["one", "two"]
    from aligner.config.recipe import Data, Source
    from aligner.data.loading import load_rows

    loaded = load_rows(Data(train=[Source(path=str(file))]), "sft", 0)
    assert len(list(loaded.train)) == 2


def test_commands_that_are_not_there_and_slashes(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    result = lines(model, f"/nope\n/help\n//etc is a folder\n/save {file}\n/save\n/exit\nnever\n")
    assert "there is no command /nope; /help lists them" in result.stderr
    assert "add the conversation to a file" in result.stderr
    assert "say where: /save talks.jsonl" in result.stderr
    (row,) = map(json.loads, file.read_text("utf-8").splitlines())
    assert row["messages"][0]["content"] == "/etc is a folder"


def test_a_place_that_cannot_be_written_does_not_end_the_chat(model: Path, tmp_path: Path) -> None:
    result = lines(model, f"one\n/save {tmp_path / 'no' / 'talks.jsonl'}\ntwo\n")
    assert "cannot be written: No such file or directory" in result.stderr
    assert result.stdout.count("\n") == 2


def test_two_models_answer_below_their_names(model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1)
    file = tmp_path / "talks.jsonl"
    result = lines(model, f"one\n/save {file}\n", "--compare", other)
    both = [
        conversation(place, max_new_tokens=4).ask("one", ignore).text for place in (model, other)
    ]
    assert result.stdout == f"{model}:\n{both[0]}\n{other}:\n{both[1]}\n"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [row["model"] for row in rows] == [str(model), str(other)]
    assert [row["messages"][-1]["content"] for row in rows] == both


def test_a_message_without_room_does_not_end_the_chat(model: Path) -> None:
    result = lines(model, f"{'x' * 600}\none\n")
    assert "the conversation has" in result.stderr
    assert "/reset makes room" in result.stderr
    assert result.stdout.count("\n") == 1


def test_what_is_not_a_model_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    result = aligner("chat", tmp_path / "nothing", input="one\n")
    assert result.exit_code == UsageError.exit_code
    assert "there is no folder" in result.stderr


# --- in a terminal --------------------------------------------------------------------------------


def test_two_answers_stand_side_by_side() -> None:
    assert side_by_side(["a", "bcd"], ["one two three", "x\ty\n\nz"], 23) == [
        "a          | bcd",
        "-          | ---",
        "one two    | x   y",
        "three      |",
        "           | z",
    ]


def test_what_would_steer_a_terminal_is_written_out_in_columns() -> None:
    assert "\x1b" not in "".join(side_by_side(["a", "b"], ["\x1b[2J", "ok"], 80))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_the_answer_and_ctrl_d_the_chat(model: Path) -> None:
    primary, secondary = os.openpty()
    command = [sys.executable, "-m", "aligner", "chat", str(model), "--temperature", "1.5"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "480"],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        start_new_session=True,
    )
    os.close(secondary)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        end = time.monotonic() + 120
        while text not in seen:
            assert time.monotonic() < end, seen.decode("utf-8", "replace")
            if select.select([primary], [], [], 1.0)[0]:
                seen += os.read(primary, 4096)

    try:
        until(b"> ")
        seen = b""
        os.write(primary, b"hello\n")
        until(b"hello\r\n")
        while seen.endswith(b"hello\r\n"):  # until the answer begins
            seen += os.read(primary, 4096)
        process.send_signal(signal.SIGINT)
        until(b"> ")
        assert b"tokens" in seen
        seen = b""
        process.send_signal(signal.SIGINT)
        until(b"(Ctrl-D or /exit leaves)")
        os.write(primary, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(primary)
