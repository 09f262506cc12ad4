"""Evaluation: each number against a slow second way to it, and none depending on the batch."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama

from aligner.data.rows import CompletionRow, ConversationRow, PreferenceRow, PromptRow, TextRow
from aligner.errors import DataError, UsageError
from aligner.evaluation.answers import describe
from aligner.evaluation.evaluate import evaluate
from aligner.evaluation.figures import standard_error
from aligner.generation.decode import Completion
from aligner.generation.sampling import Sampling
from aligner.runs.journal import Journal
from aligner.tokenization.encode import IGNORED, encode_pair, encode_sft

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}]
ROWS = [
    ConversationRow(
        [*TALK, {"role": "user", "content": "more, please"}, {"role": "assistant", "content": "ok"}]
    ),
    CompletionRow("what is 2 + 2?", "4"),
    TextRow("some plain text that is somewhat longer than the others are"),
]
PAIRS = [
    PreferenceRow("a", "yes", "no, not at all"),
    PreferenceRow("what is the capital of France?", "Paris", "Lyon"),
    PreferenceRow("b", "a much longer answer than the other", "x"),
    PreferenceRow("c", "same size", "sane size"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_llama(tokenizer, initializer_range=0.3)


def logps_by_hand(model, ids) -> list[float]:
    """One sequence, alone and unpadded: the log-probability of every token but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    return [float(logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(1, len(ids))]


def pair_logps(model, tokenizer) -> list[tuple[list[float], list[float]]]:
    sides = []
    for row in PAIRS:
        pair = encode_pair(tokenizer, row)
        start = len(pair.prompt_ids) - 1
        sides.append(
            tuple(
                logps_by_hand(model, pair.prompt_ids + a)[start:]
                for a in (pair.chosen_ids, pair.rejected_ids)
            )
        )
    return sides


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_loss_is_the_mean_over_all_trained_tokens(model, tokenizer, batch_size) -> None:
    logps, hits = [], 0
    for row in ROWS:
        encoded = encode_sft(tokenizer, row)
        wanted = [t for t in range(1, len(encoded.input_ids)) if encoded.labels[t] != IGNORED]
        by_hand = logps_by_hand(model, encoded.input_ids)
        logps += [by_hand[t - 1] for t in wanted]
        guesses = model(torch.tensor([encoded.input_ids])).logits[0].argmax(-1).tolist()
        hits += sum(guesses[t - 1] == encoded.input_ids[t] for t in wanted)
    found = evaluate(model, tokenizer, ROWS, task="sft", batch_size=batch_size)
    loss = -sum(logps) / len(logps)
    assert found["loss"] == pytest.approx(loss, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert found["bits_per_token"] == pytest.approx(loss / math.log(2), abs=1e-5)
    assert (found["token_accuracy"], found["tokens"]) == (hits / len(logps), len(logps))


def test_the_loss_is_that_of_the_model_itself(model, tokenizer) -> None:
    encoded = encode_sft(tokenizer, ROWS[0])
    own = model(
        torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels])
    ).loss.item()
    assert evaluate(model, tokenizer, ROWS[:1], task="sft")["loss"] == pytest.approx(own, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_pairs_are_compared_by_total_by_token_and_by_reward(model, tokenizer, batch_size) -> None:
    reference = tiny_llama(tokenizer, seed=1, initializer_range=0.3)
    mine, base = pair_logps(model, tokenizer), pair_logps(reference, tokenizer)
    totals = [sum(chosen) > sum(rejected) for chosen, rejected in mine]
    means = [sum(chosen) / len(chosen) > sum(rejected) / len(rejected) for chosen, rejected in mine]
    rewards = [sum(a) - sum(c) - sum(b) + sum(d) for (a, b), (c, d) in zip(mine, base)]
    found = evaluate(
        model, tokenizer, PAIRS, task="preference", reference=reference, batch_size=batch_size
    )
    assert found["accuracy"] == sum(totals) / 4
    assert found["accuracy_per_token"] == sum(means) / 4
    assert found["reward_accuracy"] == sum(reward > 0 for reward in rewards) / 4
    assert found["reward_margin"] == pytest.approx(sum(rewards) / 4, abs=1e-4)


def test_a_policy_that_equals_its_reference_ties_and_a_tie_is_half_a_win(tokenizer) -> None:
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(tiny_llama(tokenizer), LoraConfig(r=2, target_modules="all-linear"))
    found = evaluate(policy, tokenizer, PAIRS, task="preference", reference="adapter_off")
    assert (found["reward_accuracy"], found["reward_margin"]) == (0.5, 0.0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted = evaluate(policy, tokenizer, PAIRS, task="preference", reference="adapter_off")
    separate = evaluate(
        policy, tokenizer, PAIRS, task="preference", reference=tiny_llama(tokenizer)
    )
    assert adapted["reward_margin"] == pytest.approx(separate["reward_margin"], abs=1e-4)
    assert adapted["reward_margin"] != 0.0


def test_without_an_adapter_there_is_no_base_to_compare_with(model, tokenizer) -> None:
    with pytest.raises(UsageError, match="no adapter"):
        evaluate(model, tokenizer, PAIRS, task="preference", reference="adapter_off")


class LengthScorer:
    """Scores an answer by whether its length is even, and remembers what it was asked."""

    name = "length"

    def score(self, prompts, completions, references=None):
        self.asked = list(zip(prompts, references))
        return [float(len(text) % 2 == 0) for text in completions]


def test_prompts_are_answered_scored_and_averaged_by_prompt(model, tokenizer) -> None:
    rows = [PromptRow("a", answer="1"), PromptRow("bb"), PromptRow("ccc", answer="3")]
    sampling = Sampling(max_new_tokens=6, num_samples=4, seed=2)
    scorer = LengthScorer()
    found = evaluate(model, tokenizer, rows, task="prompts", scorer=scorer, sampling=sampling)
    assert scorer.asked == [(row.prompt, row.answer) for row in rows for _ in range(4)]
    assert 0.0 <= found["score"] <= 1.0
    assert (found["prompts"], found["answers"]) == (3, 12)
    assert "score" not in evaluate(model, tokenizer, rows, task="prompts", sampling=sampling)


def test_answers_are_described() -> None:
    stopped, cut = Completion("yes", [1, 2], "stop"), Completion("no", [1, 2, 3, 4], "length")
    assert describe([[stopped, stopped], [cut, stopped]]) == {
        "stopped": 0.75,
        "mean_tokens": 2.5,
        "distinct": 0.5,
        "distinct_per_prompt": 0.75,
        "prompts": 2,
        "answers": 4,
    }


def test_the_standard_error_is_that_of_a_mean() -> None:
    assert standard_error([1.0, 0.0, 1.0, 0.0]) == pytest.approx(math.sqrt((1 / 3) / 4))
    assert math.isnan(standard_error([1.0]))


def test_modes_stay_and_progress_counts_every_pass(model, tokenizer) -> None:
    seen = []
    model.train()
    evaluate(
        model,
        tokenizer,
        PAIRS,
        task="preference",
        reference=model,
        batch_size=8,
        on_progress=lambda *n: seen.append(n),
    )
    assert seen == [(8, 16), (16, 16)]
    assert model.training
    model.eval()


def test_a_broken_model_has_a_loss_that_is_nan_also_where_a_journal_keeps_it(
    tokenizer, tmp_path
) -> None:
    broken = tiny_llama(tokenizer)
    torch.nn.init.constant_(broken.lm_head.weight, math.nan)
    for _ in range(2):
        found = evaluate(
            broken,
            tokenizer,
            ROWS,
            task="sft",
            batch_size=2,
            journals=lambda name: Journal(tmp_path / f"{name}.jsonl"),
        )
        assert math.isnan(found["loss"])


def test_what_cannot_be_measured_is_refused(tokenizer) -> None:
    short = tiny_llama(tokenizer, max_position_embeddings=16)
    with pytest.raises(
        DataError, match=r"x.jsonl:3 has \d+ tokens, but the model has 16 positions"
    ):
        evaluate(short, tokenizer, [TextRow("z" * 40, origin="x.jsonl:3")], task="sft")
    with pytest.raises(UsageError, match="no rows"):
        evaluate(short, tokenizer, [], task="sft")
