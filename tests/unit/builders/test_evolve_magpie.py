"""Instructions that a model writes itself where its template lets the user speak."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.evolving import Evolution
from aligner.builders.evolve.magpie import Magpie, open_magpie
from aligner.builders.evolve.recipe import Evolve, EvolveRecipe
from aligner.builders.evolve.seeds import Seed
from aligner.config.load import load_recipe
from aligner.config.recipe import Endpoint
from aligner.config.shipped import recipe_text
from aligner.endpoints.client import open_client
from aligner.endpoints.request import Completion, LLMClient, LLMError
from aligner.endpoints.scripted import ScriptedBackend
from aligner.errors import EndpointError, RecipeError
from tests.fake_endpoint import Answer, FakeEndpoint
from tests.fakes import byte_tokenizer, save_model
from tests.runner import aligner

PROMPT = "<start>user\n"  # the tokenizer adds <bos> itself


@dataclass
class Roles:
    """One client in all roles."""

    client: LLMClient

    def __post_init__(self) -> None:
        self.evolver = self.answerer = self.optimizer = self.judge = self.client


def write(client: LLMClient, number: int = 0, attempt: int = 0, **magpie: Any) -> Evolution:
    settings = Evolve.model_validate({"mode": "magpie", "magpie": magpie})
    author = Magpie(Roles(client), settings, byte_tokenizer(), seed=7)
    return asyncio.run(
        author.write(
            Seed("row", number),
            1,
            "",
            (),
            temperature=0.7 if attempt else None,
            sample_index=attempt,
        )
    )


@pytest.mark.parametrize(
    ("reply", "text", "failure"),
    [
        ("  Why is the sky blue?\n", "Why is the sky blue?", None),
        ("Why?<eos><start>assistant\nBecause", "Why?", None),
        (Completion("Why?<eos>so", finish_reason="length"), "Why?", None),
        (Completion("Why is the", finish_reason="length"), "Why is the", "truncated"),
        (" \n", "", "empty"),
        ("Why?\n<start>assistant\nBecause", "Why?\n<start>assistant\nBecause", "template_leak"),
        (
            "I'm sorry, but I can't help with that.",
            "I'm sorry, but I can't help with that.",
            "refusal",
        ),
    ],
)
def test_a_continuation_becomes_an_instruction_or_a_class_of_failure(
    reply: Any, text: str, failure: str | None
) -> None:
    found = write(ScriptedBackend([reply]))
    assert (found.text, found.failure) == (text, failure)


def test_control_tokens_that_a_text_does_not_show_are_seen_in_its_ids() -> None:
    tokenizer = byte_tokenizer()
    for text, failure in [("Why?<start>", "template_leak"), ("Why?<eos>", None)]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert write(ScriptedBackend([Completion("Why?", token_ids=ids)])).failure == failure


def test_rows_and_tries_are_draws_of_their_own_with_the_settings_of_magpie() -> None:
    backend = ScriptedBackend(lambda request: "Why?")
    for number, attempt in [(0, 0), (1, 0), (1, 1)]:
        write(backend, number, attempt, temperature=0.9, top_p=0.8, max_tokens=11)
    requests = backend.requests
    assert {request.prompt for request in requests} == {PROMPT}
    assert {request.stop for request in requests} == {("<eos>",)}
    assert len({(request.sample_index, request.seed) for request in requests}) == 3
    assert {(one.temperature, one.top_p, one.max_tokens) for one in requests} == {(0.9, 0.8, 11)}


def test_a_system_prompt_steers_what_is_continued() -> None:
    backend = ScriptedBackend(["Why?"])
    write(backend, system="You are asked about cheese.")
    assert backend.requests[0].prompt == (
        "<start>system\nYou are asked about cheese.<eos><start>user\n"
    )


def test_a_server_continues_the_text_without_its_own_template() -> None:
    with FakeEndpoint([Answer(text="Why?")]) as server:
        section = Endpoint(model="m", base_url=server.base_url)

        async def ask() -> Evolution:
            async with open_client(section) as client:
                author = Magpie(Roles(client), Evolve(mode="magpie"), byte_tokenizer(), seed=7)
                return await author.write(
                    Seed("row", 0), 1, "", (), temperature=None, sample_index=0
                )

        assert asyncio.run(ask()).text == "Why?"
        assert server.paths[0].endswith("/v1/completions")
        assert server.bodies[0]["prompt"] == PROMPT


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_that_continues_no_texts_says_what_is_needed(status: int) -> None:
    error = LLMError("no such path", kind="fatal", status=status)
    with pytest.raises(EndpointError, match="the server does not: no such path") as caught:
        write(ScriptedBackend([error]))
    assert "/completions" in caught.value.hint
    with pytest.raises(LLMError, match="down"):
        write(ScriptedBackend([LLMError("down", kind="unavailable", status=503)]))


def recipe(**endpoint: Any) -> EvolveRecipe:
    evolve = {"mode": "magpie", "magpie": {"max_tokens": 8}}
    return EvolveRecipe.model_validate({"output_dir": "x", "endpoint": endpoint, "evolve": evolve})


def test_a_server_does_not_tell_its_tokenizer_and_other_sampling_says_nothing() -> None:
    given = ["output_dir=x", "endpoint.model=m", "evolve.mode=magpie", "evolve.rows=3"]
    with pytest.raises(RecipeError) as caught:
        load_recipe("evolve", None, [*given, "evolve.temperature=0.5"])
    assert [problem.key for problem in caught.value.problems] == [
        "evolve.magpie.tokenizer",
        "evolve.temperature",
    ]
    load_recipe("evolve", None, [*given, "evolve.magpie.tokenizer=m"])


def test_a_local_model_writes_the_same_row_whatever_is_asked_beside_it(tmp_path: Path) -> None:
    save_model(tmp_path)
    asked = recipe(backend="local", model=str(tmp_path), max_in_flight=3)

    async def rows(*numbers: int) -> list[str]:
        async with open_client(asked.endpoint) as client:
            author = open_magpie(Roles(client), asked)
            calls = [
                author.write(Seed("row", number), 1, "", (), temperature=None, sample_index=0)
                for number in numbers
            ]
            return [evolution.text for evolution in await asyncio.gather(*calls)]

    alone, together = asyncio.run(rows(2)), asyncio.run(rows(0, 1, 2, 3))
    assert together[2] == alone[0]
    assert len(set(together)) > 1


def test_a_prompt_that_no_text_gives_goes_as_ids(tmp_path: Path) -> None:
    """The tokenizer adds a start token to a text, and the template has none."""
    save_model(tmp_path)
    template = "{% for message in messages %}<start>{{ message.content }}<eos>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    asked = recipe(backend="local", model=str(tmp_path))

    async def row() -> tuple[Any, Evolution]:
        async with open_client(asked.endpoint) as client:
            author = open_magpie(Roles(client), asked)
            found = await author.write(Seed("row", 0), 1, "", (), temperature=None, sample_index=0)
            return author.prompt, found

    prompt, found = asyncio.run(row())
    assert prompt == tuple(byte_tokenizer().convert_tokens_to_ids(["<start>"]))
    assert found.completion.prompt_tokens == 1


@pytest.mark.slow
def test_a_model_that_knows_how_users_speak_writes_rows_that_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tiny/magpie, with what its header says comes before it and after it."""
    monkeypatch.chdir(tmp_path)
    header = recipe_text("tiny/magpie")
    before = re.search(r"^# Before +(.+)$", header, re.MULTILINE)
    after = re.search(r"^# Next +aligner (.+)$", header, re.MULTILINE)
    assert before is not None
    assert after is not None
    toy, _, sft = before[1].split(" && ")
    assert aligner(*toy.split()[1:]).exit_code == 0
    monkeypatch.chdir(tmp_path / "toy")
    for command in (sft.split()[1:], ["evolve", "tiny/magpie"]):
        assert aligner(*command).exit_code == 0
    rows = [
        json.loads(line) for line in Path("runs/magpie/data/train.jsonl").read_text().splitlines()
    ]
    asked = [row["prompt"][0]["content"] for row in rows]
    assert len(asked) > 100
    known = re.compile(r"(sort|reverse|rotate|upper|copy|count|add): ")
    assert sum(known.match(one) is not None for one in asked) > 80
    assert aligner(*after[1].split(), "trainer.max_steps=2").exit_code == 0
