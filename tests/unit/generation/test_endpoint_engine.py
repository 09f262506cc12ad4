"""The engine `endpoint`: how much a server understands is asked once, and nothing that it lacks is
made up."""

from __future__ import annotations

from typing import Any

import pytest
from fake_endpoint import Answer, Continues, FakeEndpoint, closed_port
from fakes import byte_tokenizer, tiny_llama

from aligner.config.recipe import Budget, Endpoint
from aligner.endpoints.request import LLMError
from aligner.errors import EndpointError, UsageError
from aligner.generation.endpoint import EndpointEngine
from aligner.generation.hf import HfEngine
from aligner.generation.requests import Request
from aligner.generation.sampling import Sampling

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)
TEXTS = ("sort: c a b", "what is 2 + 2?", "<start>user\nzebra<eos><start>assistant\n")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(byte_tokenizer(), seed=7, initializer_range=0.5)


def requests_of(sampling: Sampling = GREEDY) -> list[Request]:
    tokenizer = byte_tokenizer()
    stop = (tokenizer.eos_token_id,)
    return [
        Request(tokenizer(text)["input_ids"], sampling, stop, i) for i, text in enumerate(TEXTS)
    ]


def engine_of(server: FakeEndpoint, **settings: Any) -> EndpointEngine:
    tokenizer = settings.pop("tokenizer", None) or byte_tokenizer()
    keys = {key: settings.pop(key) for key in ("exact", "for_ratio", "cache") if key in settings}
    section = Endpoint(base_url=server.base_url, model="toy", max_retries=0, **settings)
    return EndpointEngine(section, tokenizer, **keys)


@pytest.mark.parametrize(
    ("kind", "refusals", "form"),
    [("ids", 0, "ids"), ("names", 0, "ids"), ("prompt", 1, "prompt"), ("text", 2, "text")],
)
def test_the_best_form_is_found_on_the_first_request(
    model: Any, kind: str, refusals: int, form: str
) -> None:
    with FakeEndpoint(Continues(model, byte_tokenizer(), kind)) as server:
        engine = engine_of(server)
        found = engine.generate(requests_of())
        assert engine.form == form
        assert len(server.bodies) == refusals + len(TEXTS)
        engine.generate(requests_of())
        assert len(server.bodies) == refusals + 2 * len(TEXTS)
    ours = HfEngine(model).generate(requests_of())
    for (theirs,), (mine,) in zip(found, ours):
        assert theirs.finish_reason == mine.finish_reason
        if form == "ids":
            assert theirs.token_ids == mine.token_ids
            assert theirs.raw_logps == pytest.approx(mine.raw_logps, abs=1e-4)
        else:
            assert theirs.raw_logps == []


def test_ids_that_a_text_does_not_give_back_are_counted() -> None:
    answer = {"choices": [{"text": "abc", "finish_reason": "length"}]}
    usage = {"prompt_tokens": 3, "completion_tokens": 12}
    with FakeEndpoint([Answer(body={**answer, "usage": usage})]) as server:
        engine = engine_of(server)
        (one,) = engine.generate(requests_of())[0]
        assert one.token_ids == byte_tokenizer()("abc", add_special_tokens=False)["input_ids"]
        assert engine.retokenized == len(TEXTS)


@pytest.mark.parametrize("kind", ["prompt", "text"])
def test_a_server_without_ids_is_refused_where_they_are_needed(model: Any, kind: str) -> None:
    with (
        FakeEndpoint(Continues(model, byte_tokenizer(), kind)) as server,
        pytest.raises(UsageError, match="does not take token ids and give them back"),
    ):
        engine_of(server, exact=True).generate(requests_of())


def test_a_server_that_ignores_what_it_does_not_know_is_refused_too() -> None:
    with (
        FakeEndpoint([Answer(text="so")]) as server,
        pytest.raises(UsageError, match="gives no token ids"),
    ):
        engine_of(server, exact=True).generate(requests_of())


def test_settings_that_a_server_lacks_are_refused(model: Any) -> None:
    with FakeEndpoint(Continues(model, byte_tokenizer(), "text")) as server:
        with pytest.raises(UsageError, match="does not know top_k"):
            engine_of(server).generate(requests_of(Sampling(max_new_tokens=3, top_k=5)))
        cool = Sampling(max_new_tokens=3, temperature=0.5, top_p=0.9)
        assert len(engine_of(server).generate(requests_of(cool))) == len(TEXTS)


def test_where_a_ratio_is_trained_on_sampling_is_plain(model: Any) -> None:
    with FakeEndpoint(Continues(model, byte_tokenizer())) as server:
        engine = engine_of(server, for_ratio=True)
        for setting in ({"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.7}):
            with pytest.raises(UsageError, match="ratio"):
                engine.generate(requests_of(Sampling(max_new_tokens=3, **setting)))
        (one,) = engine.generate(requests_of(Sampling(max_new_tokens=3)))[0]
        assert len(one.logps) == 3


def test_a_prompt_that_is_another_one_as_a_text_is_refused(model: Any) -> None:
    requests = [Request([1, 5, 1, 6], GREEDY, (2,))]
    tokenizer = byte_tokenizer(adds_bos=True)
    with FakeEndpoint(Continues(model, tokenizer, "text")) as server:
        found = engine_of(server).generate(requests)  # <bos> is in front once, and in the middle
        assert found[0][0].token_ids
        no_bos = [Request([5, 6], GREEDY, (2,))]
        with pytest.raises(UsageError, match="has other token ids as a text"):
            engine_of(server).generate(no_bos)


def test_cache_and_budget_are_those_of_the_endpoint(model: Any, tmp_path: Any) -> None:
    with FakeEndpoint(Continues(model, byte_tokenizer())) as server:
        settings = {"cache": tmp_path / "replies.sqlite"}
        first = engine_of(server, **settings).generate(requests_of(Sampling(max_new_tokens=40)))
        again = engine_of(server, **settings)
        ended = sum(one.finish_reason == "stop" for (one,) in first)
        asked = len(server.bodies)
        assert again.generate(requests_of(Sampling(max_new_tokens=40))) == first
        assert len(server.bodies) == asked + len(TEXTS) - ended  # a truncated reply is not kept
        assert again.usage["cached"] == ended
        with pytest.raises(LLMError, match="budget"):
            engine_of(server, budget=Budget(calls=2)).generate(requests_of())


def test_a_row_that_is_too_long_for_the_server_is_an_error_of_its_own(model: Any) -> None:
    continues = Continues(model, byte_tokenizer())

    def answers(body: dict[str, Any]) -> Answer:
        if len(body["prompt"]) > 16:
            message = "This model's maximum context length is 16 tokens"
            return Answer(400, body={"error": {"message": message}})
        return continues(body)

    with FakeEndpoint(answers) as server:
        found = engine_of(server).generate(requests_of())
    assert [one.finish_reason == "error" for (one,) in found] == [False, False, True]
    assert "maximum context length" in found[2][0].error


def test_an_end_that_nobody_asked_for_is_an_error(model: Any) -> None:
    choice = {"text": "", "token_ids": [7, 8], "logprobs": {"token_logprobs": [-1.0, -2.0]}}
    for reason in ("stop", "abort"):
        body = {"choices": [{**choice, "finish_reason": reason}]}
        with FakeEndpoint([Answer(body=body)]) as server:
            (one,) = engine_of(server).generate(requests_of()[:1])[0]
        assert one.finish_reason == "error"
        assert "stop" in one.error or "abort" in one.error


def test_a_server_that_is_not_there_is_named() -> None:
    section = Endpoint(base_url=f"http://127.0.0.1:{closed_port()}/v1", model="m", max_retries=0)
    with pytest.raises(EndpointError, match="cannot be reached"):
        EndpointEngine(section, byte_tokenizer()).generate(requests_of())
