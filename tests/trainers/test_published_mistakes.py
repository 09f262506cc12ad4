"""What the published code of segment-level RLHF (arXiv 2501.02790) gets wrong is right here.

its mistake                                                   here
masks of a batch end where its first response does            B1, and test_rlhf.py
                                                              (log-probabilities are those of
                                                              sampling)
the reward of a response goes to every one of its tokens      B2
end tokens inside a prompt are hidden                         B3
a truncated response loses its last token                     B4
"too long" counts the padded prompt, and costs every token    B5
rewards see another format than the policy's                  B6, and test_reward.py (another
                                                              tokenizer, values of token ids)
the spread turns negative on long responses                   B7
an unknown key means no normalization                         B8: test_normalizer.py (a saved fit
                                                              for something else)
a response that is only its end token                         B9
the strategy class of another package                         B10: there is none
a reward model is judged on rows that it was trained on       B11
an unknown rule of segments goes on                           B12
means of means over ranks, lone groups with a spread of 0     B13, and test_normalizer.py (two
                                                              ranks)
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, save_reward_model, small_recipe
from sampled import Spy, train

from aligner.config.segments import Segments
from aligner.data.loading import load_rows
from aligner.errors import RecipeError
from aligner.methods.pipeline import run_recipe
from aligner.methods.rlhf.advantages import gae
from aligner.methods.rlhf.credit import Credit
from aligner.methods.rlhf.normalizer import LocationNormalizer, fit
from aligner.methods.rlhf.recipe import Rlhf
from aligner.methods.rlhf.rollout import Response
from aligner.models.answers import stack_answers
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.segment import SegmentScorer
from aligner.runs.files import read_metrics
from aligner.tokenization.encode import encode_prompt
from aligner.tokenization.segments import segment_ends

PROMPT = [5, 6, 7, 8]
AS_THEY_ARE = LocationNormalizer(0.0, 0.0, 0.0, 1.0, 0.1, 0.1, 1.0, 1)


def response(tokens: int, finished: bool = True, **more: Any) -> Response:
    ids = list(range(10, 10 + tokens))
    prompt = more.pop("prompt", PROMPT)
    return Response(0, 0, prompt, ids, finished, "", [0.0] * tokens, **more)


@pytest.fixture
def scorer(small_world: Path, tmp_path: Path) -> SegmentScorer:
    """Values of tokens, and segments by the entropies of a reference."""
    reference = small_world / "model"
    segments = f"segments: {{rule: entropy, cutoff: 5.5, reference: {reference}}}\n"
    folder = save_reward_model(tmp_path / "values", card=f"kind: segment\nmodel: .\n{segments}")
    found = load_scorer(str(folder))
    assert isinstance(found, SegmentScorer)
    return found


def test_segments_end_where_the_published_code_ends_them() -> None:
    """1,000 random responses: there a token whose successor could hardly be foreseen closes a
    segment, here that successor opens one; tokens behind the end do not count."""
    chance, tokenizer, stop = random.Random(5), byte_tokenizer(), 2
    for _ in range(1000):
        body = chance.randint(1, 40)
        has_end = chance.random() < 0.5
        ids = [chance.randint(10, 90) for _ in range(body)] + [stop] * has_end
        before = [3 * chance.random() for _ in ids]
        after = [*before[1:], 3 * chance.random()]
        published = [j for j in range(body) if after[j] > 1.75 or j == body - 1]
        found = segment_ends(
            Segments(cutoff=1.75), ids, tokenizer, entropies=before, stop_ids=[stop]
        )
        assert found == published


def test_b1_each_response_of_a_batch_is_read_to_its_own_end(scorer: SegmentScorer) -> None:
    draw = random.Random(0)
    stop = scorer.tokenizer.eos_token_id
    rows = [(PROMPT, [*(draw.randint(40, 90) for _ in range(n)), stop]) for n in (2, 9, 5)]
    together = scorer.values_of_ids(rows)
    for row, found in zip(rows, together):
        (alone,) = scorer.values_of_ids([row])
        assert found.values == pytest.approx(alone.values, abs=1e-5)
        assert found.ends == alone.ends
    assert {len(found.ends) for found in together} != {1}


def test_b2_the_reward_of_a_response_is_paid_once() -> None:
    """Of as many responses as tokens, which a wrong shape would hide."""
    credit = Credit(Rlhf(algorithm="ppo", reward_models=["x"]))
    responses = [response(3, scores={"x": score}) for score in (1.0, 2.0, 4.0)]
    rewards = credit.paid(responses, {})
    assert rewards.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 4.0]]


def test_b3_end_tokens_inside_a_prompt_are_read(scorer: SegmentScorer) -> None:
    tokenizer = scorer.tokenizer
    stop = tokenizer.eos_token_id
    said = [("user", "ab"), ("assistant", "c"), ("user", "d")]
    prompt = encode_prompt(tokenizer, [{"role": role, "content": text} for role, text in said])
    assert stop in prompt
    batch = stack_answers([[(prompt, [50, 51, stop])]], pad_token_id=stop)
    assert batch["attention_mask"].all()
    ids = torch.tensor([[*prompt, 50, 51, stop]])
    with torch.no_grad():
        whole = scorer.model(ids, attention_mask=torch.ones_like(ids)).logits[0, :, 0]
    (found,) = scorer.values_of_ids([(prompt, [50, 51, stop])])
    assert found.values == pytest.approx(whole[-3:].tolist(), abs=1e-5)


def test_b4_truncated_responses_keep_what_was_sampled(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    spy = Spy(monkeypatch)
    flags = ("rlhf.max_new_tokens=3", "rlhf.iterations=2", "trainer.max_steps=2")
    train(small_world, tmp_path / "run", *flags)
    stop = byte_tokenizer().eos_token_id
    cut_off = [one for group in spy.groups[1] for one in group if not one.is_finished]
    assert len(cut_off) > 8
    for one in cut_off:
        assert len(one.token_ids) == 3
        assert one.token_ids[-1] != stop
        assert one.old_logps == pytest.approx(one.engine_logps, abs=1e-4)
    batch = spy.batches[0]
    for row, one in zip(batch["counted"], batch["responses"]):
        assert row.sum() == len(one.token_ids)


def test_b5_too_long_is_said_of_the_response_alone_and_costs_once() -> None:
    settings = Rlhf(
        algorithm="ppo", reward_models=["x"], max_new_tokens=10, overlong_buffer=4,
        missing_eos_penalty=0.5,
    )  # fmt: skip
    credit = Credit(settings)
    long_prompt = [5] * 500
    assert credit.penalty(response(6, prompt=long_prompt)) == 0.0
    cut_off = response(10, finished=False, prompt=long_prompt, scores={"x": 0.0})
    assert credit.paid([cut_off], {}).tolist() == [[0.0] * 9 + [-1.5]]


def test_b6_the_segment_model_reads_the_policys_own_token_ids(
    small_world: Path, tmp_path: Path, monkeypatch
) -> None:
    """In the fit of the normalizer as in training."""
    card = "kind: segment\nmodel: .\nsegments: {rule: fixed, length: 2}\n"
    folder = save_reward_model(tmp_path / "values", card=card)
    asked: list[tuple[list[int], list[int]]] = []
    values = SegmentScorer.values_of_ids

    def listen(self: SegmentScorer, answers: Any, **more: Any) -> Any:
        asked.extend((list(prompt), list(answer)) for prompt, answer in answers)
        return values(self, answers, **more)

    monkeypatch.setattr(SegmentScorer, "values_of_ids", listen)
    spy = Spy(monkeypatch)
    flags = ("rlhf.unit=segment", "rlhf.reward_models=[]", f"rlhf.segment_model={folder}")
    recipe = small_recipe(
        "rlhf", small_world, tmp_path / "run", *flags, "rlhf.normalizer_samples=16",
        "trainer.max_steps=1",
    )  # fmt: skip
    run_recipe(recipe)
    rows = load_rows(recipe.recipe.data, "prompts", 0).train
    prompts = {tuple(encode_prompt(byte_tokenizer(), row.prompt)) for row in rows}
    assert {tuple(prompt) for prompt, _ in asked} <= prompts
    trained = [(one.prompt_ids, one.token_ids) for group in spy.groups[0] for one in group]
    assert asked[16:] == trained


def test_b7_no_reward_changes_its_sign_on_long_responses() -> None:
    """Up to 5,000 segments, by a fit whose line of the spread is below 0 from the 200th part on."""
    chance = random.Random(0)
    rows = []
    for count in [8, 16, 32, 64] * 60:
        places = [(j + 1) / count for j in range(count)]
        rows.append([max(0.05, 5.4 + 1.02 * math.log(p)) * chance.gauss(0, 1) for p in places])
    found = fit(rows)
    for count in (246, 1535, 5000):
        first = torch.tensor([1 / count])
        assert found(first, torch.ones(1)) > found(first, -torch.ones(1))


def test_b9_a_response_that_is_only_its_end_token_has_a_value_of_its_own(
    scorer: SegmentScorer,
) -> None:
    stop = scorer.tokenizer.eos_token_id
    (found,) = scorer.values_of_ids([(PROMPT, [stop])])
    (longer,) = scorer.values_of_ids([(PROMPT[:-1], [PROMPT[-1], stop])])
    assert found.ends == [0]
    assert found.values == pytest.approx(longer.values[1:], abs=1e-6)
    assert found.values != pytest.approx(longer.values[:1], abs=1e-6)
    one = response(1, values=found.values, ends=found.ends)
    rewards = Credit(Rlhf(algorithm="ppo", unit="segment"), AS_THEY_ARE).paid([one], {})
    assert rewards[0].tolist() == pytest.approx(found.values)
    advantages, _ = gae(rewards, torch.zeros(1, 1), torch.ones(1, 1))
    assert advantages[0].tolist() == pytest.approx(found.values)


def test_b11_a_reward_model_is_judged_on_rows_that_were_held_out(
    small_world: Path, tmp_path: Path
) -> None:
    flags = ("trainer.max_steps=1", "trainer.eval_steps=1")
    recipe = small_recipe("reward", small_world, tmp_path / "run", *flags, data__eval=0.25)
    loaded = load_rows(recipe.recipe.data, "preference", recipe.recipe.seed)
    trained, held_out = ([str(row.prompt) for row in part] for part in (loaded.train, loaded.eval))
    assert held_out
    assert not set(trained) & set(held_out)
    run_recipe(recipe)
    assert [line for line in read_metrics(tmp_path / "run") if line["split"] == "eval"]
    run_recipe(small_recipe("reward", small_world, tmp_path / "without", "trainer.max_steps=1"))
    assert {line["split"] for line in read_metrics(tmp_path / "without")} == {"train"}


def test_b12_an_unknown_rule_of_segments_is_an_error(small_world: Path, tmp_path: Path) -> None:
    rule = "reward.segments.rule=peak_v2"
    with pytest.raises(RecipeError, match="peak_v2"):
        small_recipe("reward", small_world, tmp_path / "run", "reward.kind=segment", rule)
    card = "kind: segment\nmodel: .\nsegments: {rule: peak_v2}\n"
    with pytest.raises(RecipeError, match=r"(?s)rule"):
        load_scorer(str(save_reward_model(tmp_path / "values", card=card)))


@pytest.mark.parametrize("form", ["weighted", "huber_groups"])
def test_b13_lone_segments_say_nothing_of_the_spread_and_early_ones_pull_no_line(
    form: Any,
) -> None:
    chance = random.Random(1)

    def row(count: int) -> list[float]:
        return [math.log((j + 1) / count) + chance.gauss(0, 1) for j in range(count)]

    usual = [row(8) for _ in range(400)]
    alone = fit(usual, form=form)
    beside = fit([*usual, row(7), row(11), row(13)], form=form)  # 28 places that no other row has
    at = torch.tensor([0.15, 0.5, 1.0])
    for found in (alone, beside):
        spread = 1 / (found(at, torch.ones(3)) - found(at, torch.zeros(3)))
        assert spread.tolist() == pytest.approx([1.0] * 3, abs=0.1)
    long = fit([*usual, row(3000)], form=form)
    assert long.mean_slope == pytest.approx(1.0, abs=0.1)
