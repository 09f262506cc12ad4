"""Generation: what comes out depends on the arguments alone, and nothing is left changed behind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from fakes import byte_tokenizer
from fakes import tiny_llama as random_llama

from aligner.errors import DataError
from aligner.generation.decode import generate
from aligner.generation.sampling import Sampling
from aligner.runs.journal import Journal
from aligner.tokenization.encode import encode_prompt, stop_token_ids

PROMPTS = [
    "a",
    "a much longer prompt than the first",
    "sort: 3 1 2",
    "",
    "what is 2 + 2?",
    "b" * 50,
    "zebra",
    "xy",
]
GREEDY = Sampling(max_new_tokens=12, temperature=0.0)


def tiny_llama(**settings):
    """Weights large enough that answers to different prompts differ."""
    return random_llama(byte_tokenizer(), seed=7, initializer_range=0.5, **settings)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model():
    return tiny_llama()


def ids_of(answers):
    return [[completion.token_ids for completion in samples] for samples in answers]


def by_hand(model, prompt_ids, steps, stops):
    """Greedy decoding in the slow, obvious way: no cache, no padding, no batch."""
    ids = list(prompt_ids)
    model.eval()
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in stops:
                break
    return ids[len(prompt_ids) :]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_in_batches_equals_decoding_by_hand_and_keeps_the_order(
    model, tokenizer, batch_size
) -> None:
    stops = stop_token_ids(tokenizer, model)
    expected = [[by_hand(model, encode_prompt(tokenizer, prompt), 12, stops)] for prompt in PROMPTS]
    assert ids_of(generate(model, tokenizer, PROMPTS, GREEDY, batch_size=batch_size)) == expected


def test_sampled_answers_do_not_depend_on_the_batch_size(model, tokenizer) -> None:
    sampling = Sampling(max_new_tokens=10, num_samples=3, seed=5, top_p=0.95, top_k=50)
    one = ids_of(generate(model, tokenizer, PROMPTS, sampling, batch_size=1))
    assert one == ids_of(generate(model, tokenizer, PROMPTS, sampling, batch_size=7))
    assert one != ids_of(
        generate(model, tokenizer, PROMPTS, replace(sampling, seed=6), batch_size=7)
    )
    assert all(len({tuple(ids) for ids in samples}) > 1 for samples in one), (
        "samples of one prompt differ"
    )


def test_each_stop_id_ends_an_answer_and_the_text_does_not_show_it(model, tokenizer) -> None:
    free = ids_of(generate(model, tokenizer, PROMPTS, GREEDY))
    stops = {free[0][0][4], free[1][0][2]}
    model.generation_config.eos_token_id = sorted(stops)
    ends = []
    for before, (after,) in zip(free, generate(model, tokenizer, PROMPTS, GREEDY)):
        end = next((i for i, token in enumerate(before[0]) if token in stops), None)
        assert after.token_ids == (before[0] if end is None else before[0][: end + 1])
        assert after.finish_reason == ("length" if end is None else "stop")
        said = after.token_ids if end is None else after.token_ids[:-1]
        assert after.text == tokenizer.decode(said, skip_special_tokens=True)
        ends += [] if end is None else [after.token_ids[-1]]
    assert set(ends) == stops


def test_the_pad_token_ends_nothing_and_is_kept_where_the_model_writes_it(model) -> None:
    tokenizer = byte_tokenizer()
    free = ids_of(generate(model, tokenizer, PROMPTS, GREEDY))
    tokenizer.pad_token_id = free[0][0][3]
    padded = generate(model, tokenizer, PROMPTS, GREEDY)
    assert ids_of(padded) == free
    assert padded[0][0].finish_reason == "length"


def test_the_checkpoints_own_generation_settings_do_not_leak_in(model, tokenizer) -> None:
    expected = ids_of(generate(model, tokenizer, PROMPTS, GREEDY))
    own = model.generation_config
    own.update(
        repetition_penalty=5.0,
        no_repeat_ngram_size=2,
        min_new_tokens=9,
        suppress_tokens=[1],
        num_beams=3,
    )
    assert ids_of(generate(model, tokenizer, PROMPTS, GREEDY)) == expected
    assert model.generation_config is own


def test_sampling_follows_the_models_probabilities(model, tokenizer) -> None:
    sampling = Sampling(max_new_tokens=1, num_samples=3000, temperature=0.7, seed=1)
    counts = Counter(
        c.token_ids[0] for c in generate(model, tokenizer, ["a"], sampling, batch_size=512)[0]
    )
    with torch.no_grad():
        logits = model.eval()(torch.tensor([encode_prompt(tokenizer, "a")])).logits[0, -1]
    probabilities = (logits / 0.7).softmax(-1)
    for token in probabilities.topk(5).indices.tolist():
        p = float(probabilities[token])
        assert abs(counts[token] / 3000 - p) < 4 * (p * (1 - p) / 3000) ** 0.5 + 1e-3


@pytest.mark.parametrize(
    "setting", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.999}, {"temperature": 1e-4}]
)
def test_every_sampling_setting_arrives(model, tokenizer, setting) -> None:
    sampled = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12, **setting))
    assert ids_of(sampled) == ids_of(generate(model, tokenizer, PROMPTS, GREEDY))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_repetition_penalty_does_not_see_padding(model, batch_size) -> None:
    tokenizer = byte_tokenizer()
    sampling = replace(GREEDY, repetition_penalty=1.8)
    expected = ids_of(generate(model, tokenizer, PROMPTS, sampling, batch_size=1))
    tokenizer.pad_token_id = expected[0][0][0]
    assert ids_of(generate(model, tokenizer, PROMPTS, sampling, batch_size=batch_size)) == expected
    assert expected != ids_of(generate(model, tokenizer, PROMPTS, GREEDY))


def test_random_state_modes_gradients_and_cache_setting_stay_as_they_were(model, tokenizer) -> None:
    model.train()
    model.model.layers[0].eval()
    model.config.use_cache = False
    model.activation_checkpointing_enable()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with_checkpointing = ids_of(
        generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=5, seed=3))
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.config.use_cache is False
    assert model.is_activation_checkpointing
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert with_checkpointing == ids_of(
        generate(tiny_llama(), tokenizer, PROMPTS, Sampling(max_new_tokens=5, seed=3))
    )


def test_an_adapter_is_used_and_the_model_stays_trainable(tokenizer) -> None:
    from peft import LoraConfig, get_peft_model

    base = ids_of(generate(tiny_llama(), tokenizer, PROMPTS, GREEDY))
    policy = get_peft_model(
        tiny_llama(), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=True)
    )
    assert ids_of(generate(policy, tokenizer, PROMPTS, GREEDY)) == base
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted = ids_of(generate(policy, tokenizer, PROMPTS, GREEDY))
    assert adapted != base
    assert adapted == ids_of(generate(policy.merge_and_unload(), tokenizer, PROMPTS, GREEDY))


def test_a_prompt_beyond_the_models_positions_is_refused_by_number(tokenizer) -> None:
    model = tiny_llama(max_position_embeddings=40)
    with pytest.raises(
        DataError, match=r"prompt 2 \('b+\.\.\.'\) has \d+ tokens, but the model has 40 positions"
    ):
        generate(model, tokenizer, ["a", "b" * 60], GREEDY)


def test_answers_stop_where_the_models_positions_end(tokenizer) -> None:
    model = tiny_llama(max_position_embeddings=60)
    prompts = ["a", "b" * 30, "c" * 32, "d"]
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    answers = generate(model, tokenizer, prompts, Sampling(max_new_tokens=12, temperature=0.0))
    for length, (answer,) in zip(lengths, answers):
        assert answer.finish_reason == "stop" or len(answer.token_ids) == min(12, 60 - length)


def test_progress_counts_answers(model, tokenizer) -> None:
    seen = []
    sampling = Sampling(max_new_tokens=2, num_samples=2)
    generate(
        model,
        tokenizer,
        PROMPTS[:3],
        sampling,
        batch_size=4,
        on_progress=lambda *numbers: seen.append(numbers),
    )
    assert seen == [(done, 6) for done in range(1, 7)]
    assert generate(model, tokenizer, [], sampling) == []


def test_killed_at_any_part_and_resumed_writes_the_same(model, tokenizer, tmp_path) -> None:
    class Killed(Exception):
        pass

    sampling = Sampling(max_new_tokens=8, num_samples=3, seed=2)
    whole = generate(model, tokenizer, PROMPTS, sampling, batch_size=2)
    attempts, started = 0, []
    while True:
        attempts += 1
        fresh = []

        def on_progress(done, total, fresh=fresh):
            if len(fresh) == 12:
                raise Killed
            fresh.append((done, total))

        try:
            answers = generate(
                model,
                tokenizer,
                PROMPTS,
                sampling,
                batch_size=2,
                on_progress=on_progress,
                journal=Journal(tmp_path / "answers.jsonl"),
            )
        except Killed:
            started.append(fresh[0])
            continue
        break
    assert answers == whole
    assert attempts == 3, "parts of three prompts: 9, 9 and 6 answers"
    assert started == [(1, 24), (10, 24)]
