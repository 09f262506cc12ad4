"""Rewards and samples before training: scored once, on a known scale, cached under all they depend
on; recipes refused early."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from fakes import byte_tokenizer, save_model, small_recipe, write_jsonl

from aligner.errors import DataError, RecipeError
from aligner.events import Notice, OnEvent, StageProgress
from aligner.methods.dpo import reward_distillation
from aligner.methods.dpo.recipe import Dpo
from aligner.methods.dpo.reference_samples import with_samples
from aligner.methods.dpo.reward_distillation import with_reward_margins
from aligner.methods.pipeline import run_recipe
from aligner.models.fused_head import fuse_head
from aligner.models.loading import load_policy
from aligner.reward_models.base import NoVerdict, Preferences, Scores
from aligner.reward_models.card import Card
from aligner.reward_models.ensemble import ComparingEnsemble
from aligner.tokenization.batching import Batching
from aligner.tokenization.dataset import TokenizedData
from aligner.training.reference import ReferenceScorer, reference_logps

pytestmark = pytest.mark.usefixtures("own_cache")


# --- rewards --------------------------------------------------------------------------------------


@dataclass
class Judge:
    """A reward model: the length of an answer, or what `reward` says; it remembers what it was
    asked."""

    name: str = "judge"
    reward: Callable[[str], float] = len
    asked: list[str] = field(default_factory=list)
    references: list[str | None] = field(default_factory=list)
    remarks: dict[int, str] = field(default_factory=dict)
    range: tuple[float, float] = (-math.inf, math.inf)

    def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
        self.asked += completions
        self.references += references
        for row, text in enumerate(completions, 1):
            if text == "unjudged":
                raise DataError(f"row {row}: no verdict", "drop it")
        return Scores([self.reward(text) for text in completions], remarks=self.remarks)

    def fingerprint(self) -> str:
        return self.name


@dataclass
class Comparing(Judge):
    """One that compares: the probability that the first is better is given."""

    shares: list[float] = field(default_factory=list)

    def prefer(self, prompts: Any, first: Any, second: Any) -> Preferences:
        self.asked += first
        return Preferences(self.shares[: len(first)])


def split_of(*pairs: tuple[str, str], prompt: str = "p") -> Dataset:
    rows = [
        {
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "answer": None,
            "origin": f"pairs.jsonl:{number}",
        }
        for number, (chosen, rejected) in enumerate(pairs, 1)
    ]
    return Dataset.from_list([{"text": json.dumps(row), "length": 3} for row in rows])


def into(told: list[str]) -> OnEvent:
    """What adds the text of each notice to a list."""
    return lambda event: told.append(event.text) if isinstance(event, Notice) else None


@pytest.fixture
def scored(monkeypatch):
    """Gaps of the training rows, of the held-out rows, the members, and what was told, for scorers
    given as objects."""

    def run(*scorers: Any, train: Dataset, held_out: Dataset | None = None, **dpo: Any) -> Any:
        known = {scorer.name: scorer for scorer in scorers}
        monkeypatch.setattr(reward_distillation, "load_scorer", known.__getitem__)
        monkeypatch.setattr(
            reward_distillation, "only_compares", lambda spec: isinstance(known[spec], Comparing)
        )
        monkeypatch.setattr(reward_distillation, "together", lambda spec: False)
        settings = Dpo(loss="reward_distill", reward_models=list(known), **dpo)
        told: list[str] = []
        prepared = TokenizedData(train, held_out, Batching(False, False, ""))
        found, members = with_reward_margins(prepared, settings, into(told))
        columns = [
            None if rows is None else rows["reward_margins"][:]
            for rows in (found.train, found.eval)
        ]
        assert "text" not in found.train.column_names
        return *columns, members, told

    return run


def test_a_gap_is_the_difference_of_the_two_rewards_times_the_scale(scored):
    train = split_of(("aaaa", "a"), ("b", "bbb"), ("cc", "dd"))
    margins, held_out, (member,), _ = scored(
        Judge(), train=train, held_out=split_of(("xxx", "x")), reward_scale=0.5
    )
    assert margins == [[1.5], [-1.0], [0.0]]
    assert held_out == [[1.0]]
    assert member.spread == pytest.approx(math.sqrt((9 + 4 + 0) / 3))
    assert (member.pairs, member.ties, member.agrees, member.scale) == (3, 1, 0.5, 0.5)


@pytest.mark.parametrize(
    "torn", [False, True], ids=["between two parts", "while a part was written"]
)
def test_a_kill_costs_one_part_of_the_scores(scored, monkeypatch, own_cache, torn):
    monkeypatch.setattr(reward_distillation, "AT_ONCE", 2)
    texts = [("aaaa", "a"), ("b", "bbb"), ("cc", "c"), ("d", "dd"), ("eeeee", "e")]

    def dies_at_the_third(text: str) -> float:
        if text == "eeeee":
            raise KeyboardInterrupt
        return float(len(text))

    with pytest.raises(KeyboardInterrupt):
        scored(Judge(reward=dies_at_the_third), train=split_of(*texts), reward_scale=1.0)
    (file,) = own_cache.rglob("*.jsonl")
    if torn:
        file.write_text(file.read_text()[:-5])
    again = Judge()
    margins, _, _, told = scored(again, train=split_of(*texts), reward_scale=1.0)
    assert margins == [[3.0], [-2.0], [1.0], [-1.0], [4.0]]
    assert again.asked == (["cc", "c", "d", "dd"] if torn else []) + ["eeeee", "e"]
    assert (
        f"resuming scoring the training pairs with judge: {1 if torn else 2} of 3 parts are "
        "there already" in told
    )
    assert not list(own_cache.rglob("*.jsonl"))
    whole, *_, told = scored(Judge(), train=split_of(*texts), reward_scale=1.0)
    assert whole == margins
    assert any("from the cache" in text for text in told)


def test_progress_is_told_part_by_part(scored, monkeypatch):
    monkeypatch.setattr(reward_distillation, "AT_ONCE", 2)
    monkeypatch.setattr(reward_distillation, "load_scorer", lambda name: Judge())
    events: list[Any] = []
    rows = split_of(("aaaa", "a"), ("b", "bbb"), ("cc", "c"))
    prepared = TokenizedData(rows, None, Batching(False, False, ""))
    with_reward_margins(
        prepared, Dpo(loss="reward_distill", reward_models=["toy"], reward_scale=1.0), events.append
    )
    stage = "scoring the training pairs with judge"
    assert [event for event in events if isinstance(event, StageProgress)] == [
        StageProgress(stage, 2, 3),
        StageProgress(stage, 3, 3),
    ]


def test_std_divides_by_the_deviation_of_the_training_gaps_whatever_their_order(scored):
    """Of +3 and -2 and their mirror images: the root of their mean square. Held-out gaps take the
    same scale."""
    train = split_of(("aaaa", "a"), ("b", "bbb"))
    margins, held_out, (member,), _ = scored(
        Judge(), train=train, held_out=split_of(("xxx", "x")), reward_scale="std"
    )
    scale = 1 / math.sqrt(6.5)
    assert [margin for (margin,) in margins] == pytest.approx([3 * scale, -2 * scale])
    assert held_out[0][0] == pytest.approx(2 * scale)
    turned, *_ = scored(Judge(), train=split_of(("a", "aaaa"), ("bbb", "b")), reward_scale="std")
    assert [margin for (margin,) in turned] == pytest.approx([-3 * scale, 2 * scale])
    assert member.scale == pytest.approx(scale)


def test_std_keeps_a_size_where_all_gaps_are_the_same(scored):
    """Their deviation about their mean would be 0, though every pair says the same thing."""
    margins, *_ = scored(Judge(), train=split_of(("aaa", "a"), ("bbb", "b")), reward_scale="std")
    assert margins == [[1.0], [1.0]]


def test_each_member_of_a_family_has_a_column_and_a_scale_of_its_own(scored):
    family = (Judge("long"), Judge("short", lambda text: -100.0 * len(text)))
    margins, _, members, told = scored(
        *family, train=split_of(("aaa", "a"), ("b", "bbb")), reward_scale="std"
    )
    assert margins == [[1.0, -1.0], [-1.0, 1.0]]
    assert [member.name for member in members] == ["long", "short"]
    _, _, _, told = scored(*family, train=split_of(("aaa", "a"), ("b", "bbb")))
    assert any("differ in size (2, 200)" in text for text in told)


def test_an_answer_that_stands_in_several_pairs_is_scored_once(scored):
    judge = Judge()
    margins, *_ = scored(judge, train=split_of(("aaa", "a"), ("aaa", "aa"), ("aa", "a")))
    assert margins == [[2.0], [1.0], [1.0]]
    assert sorted(judge.asked) == ["a", "aa", "aaa"]


def test_the_second_time_nothing_is_scored(scored):
    rows = split_of(("aaa", "a"), ("b", "bb"))
    first, *_ = scored(Judge(), train=rows)
    again = Judge()
    second, _, _, told = scored(again, train=rows, reward_scale=2.0)
    assert again.asked == []
    assert second == [[2 * margin] for (margin,) in first]
    assert any("from the cache" in text for text in told)


@pytest.mark.parametrize("changed", ["fingerprint", "answer", "prompt"])
def test_another_scorer_or_another_text_is_scored_anew(scored, changed):
    scored(Judge(), train=split_of(("aaa", "a")))
    judge = Judge("other" if changed == "fingerprint" else "judge")
    rows = split_of(
        ("aaa", "ab" if changed == "answer" else "a"), prompt="q" if changed == "prompt" else "p"
    )
    scored(judge, train=rows)
    assert len(judge.asked) == 2


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_reward_that_is_no_number_names_its_row(scored, odd):
    judge = Judge(reward=lambda text: odd if text == "odd" else 1.0)
    with pytest.raises(DataError, match=rf"pairs\.jsonl:2: judge gave {odd}"):
        scored(judge, train=split_of(("a", "b"), ("c", "odd"), ("d", "e")))
    judge.reward = len  # nothing of it was kept
    margins, *_ = scored(judge, train=split_of(("a", "b"), ("c", "odd"), ("d", "e")))
    assert margins == [[0.0], [-2.0], [0.0]]


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_row_that_cannot_be_scored_is_named_by_its_place_in_the_file(scored, place):
    pairs = [(f"a{i}", f"b{i}") for i in range(7)]
    pairs[place] = ("unjudged", "b")
    with pytest.raises(DataError, match=rf"pairs\.jsonl:{place + 1}: no verdict"):
        scored(Judge(), train=split_of(*pairs))


def test_pairs_without_a_verdict_are_listed_and_the_others_are_not_asked_about_again(scored):
    """A judge's replies cost; its error lists the rows that got none."""

    @dataclass
    class Costly(Judge):
        def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
            self.asked += completions
            odd = {row: "no grade" for row, text in enumerate(completions) if text == "odd"}
            if odd:
                error = NoVerdict("no usable grade")
                error.rows = odd
                raise error
            return Scores([float(len(text)) for text in completions])

    texts = [split_of(pair, prompt=pair[0]) for pair in (("a", "b"), ("c", "odd"), ("d", "e"))]
    train = Dataset.from_list([row for rows in texts for row in rows.to_list()])
    judge = Costly()
    with pytest.raises(DataError, match="judge gave no score for 1 of 6 answers") as caught:
        scored(judge, train=train)
    (problem,) = caught.value.problems
    assert (problem.where, problem.message) == ("pairs.jsonl:1", "no grade")
    judge.asked.clear()
    with pytest.raises(DataError, match="judge gave no score for 1 of 6 answers"):
        scored(judge, train=train)
    assert judge.asked == ["c", "odd", "c"]


def test_a_reward_model_that_prefers_nothing_is_refused(scored):
    with pytest.raises(DataError, match="both answers of all 2 pairs the same reward"):
        scored(Judge(reward=lambda text: 3.0), train=split_of(("a", "b"), ("c", "d")))


def test_one_that_compares_gives_the_logit_of_its_probability(scored):
    judge = Comparing(shares=[0.75, 0.5, 1.0, 0.0])
    margins, *_ = scored(judge, train=split_of(("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")))
    assert [margin for (margin,) in margins] == pytest.approx(
        [math.log(3), 0.0, 13.8155, -13.8155], abs=1e-3
    )


def test_which_reward_models_only_compare(tmp_path):
    """A judge compares too, but its grades are rewards; an ensemble compares as soon as one member
    has to."""
    cards = {
        "pair": "kind: pairwise\nmodel: nowhere",
        "judge": "kind: judge\nendpoint: {model: m, base_url: 'http://127.0.0.1:9'}",
        "with": "kind: ensemble\nmembers: [./pair.yaml, toy]",
        "without": "kind: ensemble\nmembers: [./judge.yaml, toy]",
    }
    for name, text in cards.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    found = [
        name for name in cards if reward_distillation.only_compares(str(tmp_path / f"{name}.yaml"))
    ]
    assert found == ["pair", "with"]


def test_what_a_scorer_remarks_is_told(scored):
    judge = Judge(remarks={1: "the prompt was cut by 12 tokens"})
    _, _, _, told = scored(judge, train=split_of(("aaa", "a")))
    assert any("cut by 12 tokens" in text for text in told)


LENGTHS = """
def longer(prompt, completion, reference):
    return float(len(completion))

def half(prompt, completion, reference):
    return 0.5 * len(completion)

def once(prompt, completion, reference):
    if completion == "unjudged":
        raise ValueError("no")
    return float(len(completion))

def same(prompt, completion, reference):
    return 3.0
"""


def on_one_scale(folder: Path, *rules: str) -> str:
    (folder / "lengths.py").write_text(LENGTHS)
    members = ", ".join(f"'verifier:{folder}/lengths.py:{rule}'" for rule in rules)
    (folder / "all.yaml").write_text(f"kind: ensemble\nmembers: [{members}]\nstandardize: true\n")
    return str(folder / "all.yaml")


def margins_of(
    spec: str, train: Dataset, held_out: Dataset
) -> tuple[list[list[float]], list[list[float]], list[str]]:
    told: list[str] = []
    settings = Dpo(loss="reward_distill", reward_models=[spec], reward_scale=1.0)
    prepared = TokenizedData(train, held_out, Batching(False, False, ""))
    found, _ = with_reward_margins(prepared, settings, into(told))
    assert found.eval is not None
    return found.train["reward_margins"][:], found.eval["reward_margins"][:], told


def test_an_ensemble_on_one_scale_has_the_same_gap_for_a_pair_in_either_split(tmp_path):
    spec = on_one_scale(tmp_path, "longer", "half")
    train = split_of(("aaaaaaaaa", "a"), ("bb", "b" * 7), ("xx", "x"))
    held_out = split_of(("xx", "x"), ("c", "ccc"))
    margins, others, _ = margins_of(spec, train, held_out)
    # lengths 9 1 2 7 2 1 1 3: each answer once, so that both members are divided by this deviation
    # (halves by its half)
    size = statistics.pstdev([9, 1, 2, 7, 2, 1, 1, 3])
    assert [margin for (margin,) in margins] == pytest.approx([8 / size, -5 / size, 1 / size])
    assert [margin for (margin,) in others] == pytest.approx([1 / size, -2 / size])


def test_other_held_out_pairs_change_the_scale_and_are_not_taken_from_the_cache(tmp_path):
    spec = on_one_scale(tmp_path, "longer", "half")
    train = split_of(("aaaaaaaaa", "a"), ("bb", "b" * 7))
    first, _, _ = margins_of(spec, train, split_of(("c", "ccc")))
    other, _, told = margins_of(spec, train, split_of(("c", "c" * 50)))
    assert not any("from the cache" in text for text in told)
    assert other != first
    again, _, told = margins_of(spec, train, split_of(("c", "ccc")))
    assert any("from the cache" in text for text in told)
    assert again == first


def test_a_member_without_a_scale_is_nobodys_row_and_a_broken_row_is_still_found(tmp_path):
    train = split_of(("aaaaaaaaa", "a"), ("bb", "b" * 7))
    with pytest.raises(DataError, match=r"same gives all 6 rows the same score") as caught:
        margins_of(on_one_scale(tmp_path, "longer", "same"), train, split_of(("c", "ccc")))
    assert "pairs.jsonl" not in str(caught.value)
    broken = split_of(("aaaaaaaaa", "a"), ("bb", "b" * 7), ("x", "y"), ("unjudged", "a"))
    with pytest.raises(DataError, match=r"pairs\.jsonl:4: .*raised ValueError: no"):
        margins_of(on_one_scale(tmp_path, "longer", "once"), broken, split_of(("c", "ccc")))


def test_right_answers_reach_an_ensemble_that_compares(own_cache):
    @dataclass
    class Exact(Judge):
        def score(self, prompts: Any, completions: Any, references: Any = None) -> Scores:
            return Scores([float(text == known) for text, known in zip(completions, references)])

    card = Card(kind="ensemble", name="all", members=["even", "exact"])
    scorer = ComparingEnsemble(card, [Comparing("even", shares=[0.5, 0.5]), Exact("exact")])
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "answer": answer, "origin": "x"}
        for answer in ("a", "b")
    ]
    ahead, behind = reward_distillation._gaps(scorer, True, rows, "training", None, None)
    assert (ahead > 0, behind) == (True, pytest.approx(-ahead))


def test_the_text_of_a_pair_goes_along_with_its_right_answer(small_world, tmp_path, monkeypatch):
    """From the file, through preparation, to the scorer: prompt as it was, answers as text,
    `answer` as reference."""
    rows = [json.loads(line) for line in (small_world / "pairs.jsonl").read_text().splitlines()[:4]]
    file = write_jsonl(
        tmp_path / "pairs.jsonl", ({**row, "right": f"r{i}"} for i, row in enumerate(rows))
    )
    judge = Judge()
    monkeypatch.setattr(reward_distillation, "load_scorer", lambda spec: judge)
    monkeypatch.setattr(reward_distillation, "only_compares", lambda spec: False)
    source = [{"path": str(file), "columns": {"answer": "right"}}]
    flags = {"data__train": source, "trainer__max_steps": 1, "dpo__forward_kl": 0.0}
    run_recipe(small_recipe("dpo", small_world, tmp_path / "run", *DISTILL, **flags))
    assert judge.asked[:2] == [rows[0][side][0]["content"] for side in ("chosen", "rejected")]
    assert judge.references == [f"r{i // 2}" for i in range(8)]


# --- answers of the reference ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


PROMPTS = Dataset.from_list([{"prompt_ids": [1, 10 + i // 2, 11]} for i in range(6)])


def written(
    tokenizer: Any, folder: Path, *overrides: str, batch_size: int = 4, **flags: Any
) -> tuple[Dataset, list[Any]]:
    """Rows with answers of the reference, and the events."""
    if not (folder / "model").exists():
        save_model(folder / "model")
    flags = {"dpo__forward_kl": 1.0, "dpo__forward_kl_tokens": 12, **flags}
    recipe = small_recipe("dpo", folder, folder / "run", *overrides, **flags).recipe
    policy = load_policy(recipe.model, tokenizer, trainable=True)
    fuse_head(policy)
    events: list[Any] = []
    scorer = ReferenceScorer(recipe, tokenizer, policy, batch_size, False, events.append)
    return with_samples(PROMPTS, scorer, "training"), events


def test_samples_follow_from_the_seed_and_pairs_of_one_prompt_have_different_ones(
    tokenizer, tmp_path, monkeypatch
):
    first, _ = written(tokenizer, tmp_path)
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "elsewhere"))
    again, events = written(tokenizer, tmp_path, batch_size=2)
    assert any(isinstance(event, StageProgress) for event in events)
    assert again["sample_ids"][:] == first["sample_ids"][:]
    assert again["reference_sample"][:] == pytest.approx(first["reference_sample"][:], abs=1e-4)
    assert first["sample_ids"][0] != first["sample_ids"][1]
    other, _ = written(tokenizer, tmp_path, seed=7)
    assert other["sample_ids"][:] != first["sample_ids"][:]


def test_samples_are_written_once_and_anew_for_another_length(tokenizer, tmp_path):
    first, _ = written(tokenizer, tmp_path)
    again, events = written(tokenizer, tmp_path, "dpo.beta=0.7", "trainer.learning_rate=1e-5")
    assert again.to_list() == first.to_list()
    assert not any(isinstance(event, StageProgress) for event in events)
    assert any(isinstance(event, Notice) and "from the cache" in event.text for event in events)
    longer, events = written(tokenizer, tmp_path, dpo__forward_kl_tokens=13)
    assert any(isinstance(event, StageProgress) for event in events)
    assert max(map(len, longer["sample_ids"])) == 13


def test_the_log_probability_of_a_sample_is_that_of_the_reference(tokenizer, tmp_path):
    found, _ = written(tokenizer, tmp_path)
    recipe = small_recipe("dpo", tmp_path, tmp_path / "run").recipe
    policy = load_policy(recipe.model, tokenizer, trainable=False)
    fuse_head(policy)
    pairs = Dataset.from_list(
        [
            {
                "prompt_ids": r["prompt_ids"],
                "chosen_ids": r["sample_ids"],
                "rejected_ids": [2],
                "length": 20,
            }
            for r in found
        ]
    )
    expected = [chosen for chosen, _ in reference_logps(policy, pairs, tokenizer.pad_token_id, 3)]
    assert found["reference_sample"][:] == pytest.approx(expected, abs=1e-4)


def test_a_row_is_never_longer_than_rows_may_be_and_beginnings_are_counted(tokenizer, tmp_path):
    found, events = written(tokenizer, tmp_path, "data.max_length=8")
    assert max(len(ids) for ids in found["sample_ids"]) == 5
    assert any("end unfinished" in event.text for event in events if isinstance(event, Notice))


def test_the_reference_of_pairs_is_not_changed_by_samples_beside_them(tokenizer, tmp_path):
    """Log-probabilities of the two answers are read from a batch that could hold three."""
    save_model(tmp_path / "model")
    recipe = small_recipe("dpo", tmp_path, tmp_path / "run").recipe
    policy = load_policy(recipe.model, tokenizer, trainable=False)
    fuse_head(policy)
    pair = {"prompt_ids": [1, 10], "chosen_ids": [20, 2], "rejected_ids": [21, 22, 2], "length": 5}
    with_sample = {**pair, "sample_ids": [30, 31, 32, 33], "reference_sample": -3.0}
    found = [
        reference_logps(policy, Dataset.from_list([row, row]), tokenizer.pad_token_id, 2)
        for row in (pair, with_sample)
    ]
    assert found[0] == found[1]


# --- recipes --------------------------------------------------------------------------------------


DISTILL = ("dpo.loss=reward_distill", "dpo.reward_models=[toy]")


@pytest.mark.parametrize(
    ("overrides", "key", "what"),
    [
        (("dpo.loss=reward_distill",), "dpo.reward_models", "is missing"),
        (("dpo.reward_models=[toy]",), "dpo.reward_models", "has no effect on `sigmoid`"),
        (("dpo.reward_scale=2.0",), "dpo.reward_scale", "has no effect"),
        (("dpo.reward_combine=min",), "dpo.reward_combine", "has no effect"),
        ((*DISTILL, "dpo.reward_combine=min"), "dpo.reward_combine", "there is one"),
        ((*DISTILL, "dpo.reward_models=[toy, toy]"), "dpo.reward_models", "more than once"),
        ((*DISTILL, "dpo.loss={reward_distill: 1.0, sft: 0.2}"), "dpo.loss", "mixture"),
        ((*DISTILL, "dpo.reward_scale=0"), "dpo.reward_scale", "at least 1e-06"),
        ((*DISTILL, "dpo.reward_scale=rms"), "dpo.reward_scale", "std"),
        ((*DISTILL, "data.on_too_long=truncate"), "data.on_too_long", "whole answers"),
        ((*DISTILL, "dpo.warmup_steps_dpo=5"), "dpo.warmup_steps_dpo", "labels"),
        ((*DISTILL, "dpo.label_smoothing=0.1"), "dpo.label_smoothing", "has no effect"),
        (("dpo.forward_kl_tokens=5",), "dpo.forward_kl_tokens", "has no effect"),
        (("dpo.loss=simpo", "dpo.forward_kl=0.1"), "dpo.forward_kl", "has none"),
        (("dpo.forward_kl=-1",), "dpo.forward_kl", "at least 0"),
        (("dpo.loss=distill", "dpo.nll_weight=0"), "dpo.loss", "reward_distill"),
    ],
)
def test_what_does_not_go_together_is_refused_by_key(tmp_path, overrides, key, what):
    with pytest.raises(RecipeError) as caught:
        small_recipe("dpo", tmp_path, tmp_path / "run", *overrides)
    problems = [problem for problem in caught.value.problems if problem.key == key]
    assert any(what in f"{problem.message} {problem.hint}" for problem in problems), caught.value


def test_a_recipe_for_distillation_is_accepted(tmp_path):
    recipe = small_recipe(
        "dpo", tmp_path, tmp_path / "run", *DISTILL, "dpo.reward_scale=std"
    ).recipe
    assert recipe.dpo.reward_scale == "std"
    small_recipe("dpo", tmp_path, tmp_path / "run", "dpo.forward_kl=0.1", "dpo.forward_kl_tokens=5")
    small_recipe(
        "dpo", tmp_path, tmp_path / "run", *DISTILL, "dpo.forward_kl=0", "dpo.forward_kl_tokens=5"
    )


def test_a_reward_model_that_is_not_there_is_told_before_anything_is_read(small_world, tmp_path):
    recipe = small_recipe(
        "dpo", small_world, tmp_path / "run", DISTILL[0], "dpo.reward_models=[toys]"
    )
    with pytest.raises(RecipeError, match="did you mean 'toy'"):
        run_recipe(recipe)
    assert not (tmp_path / "run").exists()


def test_an_ensemble_that_holds_itself_is_told_before_anything_is_read(small_world, tmp_path):
    (tmp_path / "a.yaml").write_text("kind: ensemble\nmembers: [./b.yaml]\n")
    (tmp_path / "b.yaml").write_text("kind: ensemble\nmembers: [./a.yaml]\n")
    spec = f"dpo.reward_models=[{tmp_path}/a.yaml]"
    with pytest.raises(RecipeError, match="a -> b -> a"):
        run_recipe(
            small_recipe("dpo", small_world, tmp_path / "run", DISTILL[0], spec), dry_run=True
        )
    assert not (tmp_path / "run").exists()


def test_rules_are_answered_without_torch(tmp_path):
    program = (
        "import sys; from aligner.config.load import load_recipe; from aligner.errors import "
        "RecipeError\n"
        "try: load_recipe('dpo', None, ['dpo.loss=reward_distill', 'model.name_or_path=m', "
        "'data.train=d'], {})\n"
        "except RecipeError as error: print('reward_models' in str(error), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["True", "False"]
