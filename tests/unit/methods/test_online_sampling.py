"""What an engine is asked in a round, and what is kept of its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import BOS, byte_tokenizer, save_model

from aligner.config.recipe import Generation, Model
from aligner.data.rows import PromptRow
from aligner.errors import UsageError
from aligner.generation import writers
from aligner.generation.requests import Generated
from aligner.generation.shard_ranks import sample
from aligner.generation.shards import (
    RESPONSES,
    Asking,
    finish_sampling,
    responses_in,
)
from aligner.runs.stages import Stage, Stages

EOS = 2


class Scripted:
    """An engine that keeps what it is asked, and answers "ab", every other time cut short."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error = ""

    def generate(self, requests: Sequence[Any]) -> list[list[Generated]]:
        self.asked += requests
        ids = byte_tokenizer()("ab", add_special_tokens=False)["input_ids"]
        found = []
        for request in requests:
            samples = []
            for number in range(request.sampling.num_samples):
                whole = Generated([*ids, EOS], "stop")
                samples.append(Generated(ids, "length") if number % 2 else whole)
            found.append(samples)
        if self.error:
            found[-1][-1] = Generated([], "error", error=self.error)
        return found


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()

    @contextmanager
    def opened(generation: Any, section: Any, tokenizer: Any, **_: Any) -> Iterator[Any]:
        yield writers.outline_of(section, tokenizer), made

    monkeypatch.setattr(writers, "open_engine", opened)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("sampling") / "model")


def asking(model: Path, **changes: Any) -> Asking:
    given: dict[str, Any] = {
        "section": Model(name_or_path=str(model)),
        "generation": Generation(),
        "temperatures": [1.0, 0.7],
        "num_samples": 4,
        "max_new_tokens": 8,
        "max_length": 64,
        "seed": 3,
        "shard_size": 5,
        "batch_size": 4,
        "stream": "rounds/01",
    }
    return Asking(**given | changes)


def rows(count: int) -> list[PromptRow]:
    return [PromptRow(f"q{number}", origin=f"p.jsonl:{number + 1}") for number in range(count)]


def sampled(folder: Path, prompts: list[PromptRow], how: Asking) -> Stage:
    stage = Stages(folder).open("sample", {})
    list(sample(stage, prompts, how, stage.journal(RESPONSES)))
    return stage


def test_every_prompt_is_answered_also_those_of_a_short_last_shard(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    """The published code divides by the number of processes, and drops the rest."""
    stage = sampled(tmp_path, rows(12), asking(model))
    journal = stage.journal(RESPONSES)
    counts = [len(samples) for part in range(3) for samples in responses_in(journal, part)]
    assert counts == [4] * 12


def test_each_temperature_has_its_share_and_no_filter(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    stage = sampled(tmp_path, rows(1), asking(model))
    first, second = engine.asked
    assert [first.sampling.temperature, second.sampling.temperature] == [1.0, 0.7]
    assert [first.sampling.num_samples, second.sampling.num_samples] == [2, 2]
    assert {(one.sampling.top_p, one.sampling.top_k) for one in engine.asked} == {(1.0, 0)}
    (samples,) = responses_in(stage.journal(RESPONSES), 0)
    assert [one.temperature for one in samples] == [1.0, 1.0, 0.7, 0.7]


def test_no_two_requests_have_the_same_random_numbers(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    """The published code gives every request of every round the same seed."""
    for name in ("rounds/01", "rounds/02", "rounds/02 start"):
        sampled(tmp_path / name, rows(6), asking(model, stream=name))
    streams = [(one.sampling.seed, one.stream) for one in engine.asked]
    assert len(set(streams)) == len(streams) == 3 * 6 * 2


def test_a_prompt_is_asked_as_it_is_trained_on_with_one_start_token(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    sampled(tmp_path, rows(1), asking(model))
    ids, tokenizer = engine.asked[0].prompt_ids, byte_tokenizer()
    assert list(ids).count(tokenizer.convert_tokens_to_ids(BOS)) == 1
    assert tokenizer.decode(ids) == "<bos><start>user\nq0<eos><start>assistant\n"


def test_a_response_that_was_cut_has_no_stop_id(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    stage = sampled(tmp_path, rows(1), asking(model))
    (samples,) = responses_in(stage.journal(RESPONSES), 0)
    assert [one.is_finished for one in samples] == [True, False] * 2
    assert [one.token_ids[-1] == EOS for one in samples] == [True, False] * 2
    assert {one.text for one in samples} == {"ab"}


def test_a_prompt_that_leaves_no_room_is_left_out_and_counted(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    """So no pair is ever cut: prompt and longest response fit into `data.max_length`."""
    prompts = [*rows(2), PromptRow("long " * 12)]
    told: list[Any] = []
    how = asking(model, on_event=told.append)
    stage = sampled(tmp_path, prompts, how)
    finish_sampling(stage, prompts, how)
    assert stage.facts is not None
    assert stage.facts["prompts too long to be answered"] == 1
    assert stage.facts["responses"] == 8
    assert stage.facts["finished"] == 0.5
    assert any("1 of 3 prompts leave no room" in str(event) for event in told)
    assert max(len(one.prompt_ids) for one in engine.asked) + 8 <= 64


def test_an_engine_that_gives_up_is_named_with_the_row_and_the_shards_before_stay(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    stage = Stages(tmp_path).open("sample", {})
    parts = sample(stage, rows(10), asking(model), stage.journal(RESPONSES))
    assert next(parts) == 0
    engine.error = "out of memory"
    with pytest.raises(UsageError, match=r"p\.jsonl:10 has no response: out of memory"):
        next(parts)
    assert 0 in Stages(tmp_path).open("sample", {}).journal(RESPONSES)


def test_shards_that_are_there_are_not_sampled_again(
    model: Path, engine: Scripted, tmp_path: Path
) -> None:
    stage = Stages(tmp_path).open("sample", {})
    next(sample(stage, rows(12), asking(model), stage.journal(RESPONSES)))
    engine.asked.clear()
    sampled(tmp_path, rows(12), asking(model))
    assert len(engine.asked) == 7 * 2
    engine.asked.clear()
    sampled(tmp_path, rows(12), asking(model))
    assert engine.asked == []
