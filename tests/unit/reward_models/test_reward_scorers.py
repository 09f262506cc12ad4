"""Neural reward models as scorers: what must not change a score, what must, and what is said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import CHAT_TEMPLATE, EOS, byte_tokenizer, save_model, save_reward_model
from transformers import AutoModelForSequenceClassification, GPT2Config, LlamaConfig

from aligner.config.segments import Segments
from aligner.data.rows import PreferenceRow
from aligner.errors import DataError, Problem, RecipeError
from aligner.models.forward import pad
from aligner.models.reward_head import Float32Linear, head_of, merge_heads, pool_by_mask
from aligner.reward_models.base import preferences
from aligner.reward_models.card import parse_card
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.heads import Conversations
from aligner.reward_models.pairwise_prompt import encode_question, question_text
from aligner.tokenization.encode import encode_answer, encode_pair
from aligner.tokenization.segments import cutoff_for, segment_ends

USER = [{"role": "user", "content": "say something"}]
PROMPTS: list[Any] = [
    USER,
    "a plain prompt",
    USER,
    [*USER, {"role": "assistant", "content": "no"}, *USER],
    USER,
]
ANSWERS = [
    "yes",
    "something that is longer than the others by far, really",
    "",
    "<pad><eos>",
    "yes",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rm") / "model")


def test_scores_do_not_depend_on_batches_order_or_the_tokenizers_padding_side(folder: Path) -> None:
    scorer: Any = load_scorer(str(folder))
    together = scorer.score(PROMPTS, ANSWERS)
    alone = [scorer.score([prompt], [answer])[0] for prompt, answer in zip(PROMPTS, ANSWERS)]
    backwards = list(reversed(scorer.score(PROMPTS[::-1], ANSWERS[::-1])))
    scorer.tokenizer.padding_side = "left"
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(backwards, abs=1e-5)
    assert together == pytest.approx(list(scorer.score(PROMPTS, ANSWERS)), abs=1e-7)
    assert together[0] == together[4]
    assert len(set(together)) == 4
    assert scorer.score([], []) == []


def test_padding_on_the_left_gives_the_same_score(folder: Path) -> None:
    scorer: Any = load_scorer(str(folder))
    ids = [
        [i for part in encode_answer(scorer.tokenizer, *row) for i in part]
        for row in zip(PROMPTS, ANSWERS)
    ]
    batch = pad(ids, scorer.tokenizer.pad_token_id, left=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**batch).logits[:, 0].tolist()
    assert list(scorer.score(PROMPTS, ANSWERS)) == pytest.approx(logits, abs=1e-5)


def test_a_score_is_what_transformers_gives_at_the_last_token(folder: Path) -> None:
    scorer: Any = load_scorer(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = scorer.tokenizer.apply_chat_template(
        [*USER, {"role": "assistant", "content": "yes"}], return_dict=False, tokenize=True
    )
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.item()
    assert scorer.score([USER], ["yes"])[0] == pytest.approx(expected, abs=1e-6)


def test_an_answer_that_was_cut_off_has_another_score_than_a_finished_one(folder: Path) -> None:
    scorer: Any = load_scorer(str(folder))
    finished, cut = scorer.score([USER, USER], ["yes", "yes"], finished=[True, False])
    assert abs(finished - cut) > 1e-4
    assert scorer.score([USER], [""], finished=[False])[0] != scorer.score([USER], [""])[0]


def test_scores_are_the_same_in_a_new_process(folder: Path) -> None:
    code = (
        "import json, sys; from aligner.reward_models.catalogue import load_scorer; s = "
        "load_scorer(sys.argv[1]);"
        "print(json.dumps([s.score(*json.loads(sys.argv[2])), s.fingerprint()]))"
    )
    arguments = [sys.executable, "-c", code, str(folder), json.dumps([PROMPTS, ANSWERS])]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    scorer = load_scorer(str(folder))
    assert json.loads(done.stdout.splitlines()[-1]) == [
        list(scorer.score(PROMPTS, ANSWERS)),
        scorer.fingerprint(),
    ]


def test_the_end_of_an_answer_is_read_where_it_also_pads(tmp_path: Path) -> None:
    save_reward_model(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": EOS}))
    model_config = json.loads((tmp_path / "config.json").read_text())
    eos = byte_tokenizer().eos_token_id
    (tmp_path / "config.json").write_text(json.dumps({**model_config, "pad_token_id": eos}))
    scorer: Any = load_scorer(str(tmp_path))
    assert scorer.tokenizer.pad_token_id != eos
    assert scorer.model.config.pad_token_id == scorer.tokenizer.pad_token_id
    finished, cut = scorer.score([USER, USER], ["yes", "yes"], finished=[True, False])
    assert abs(finished - cut) > 1e-4, "the end of an answer is seen"
    with_other_pad = save_reward_model(tmp_path / "other")
    assert finished == pytest.approx(
        load_scorer(str(with_other_pad)).score([USER], ["yes"])[0], abs=1e-6
    )


def test_what_is_too_long_loses_its_beginning_and_says_so(tmp_path: Path) -> None:
    save_reward_model(tmp_path, card="kind: bradley_terry\nmodel: .\nmax_length: 30\n")
    scores = load_scorer(str(tmp_path)).score([USER, "hi", USER], ["yes", "a", "x" * 40])
    assert "tokens from its beginning" in scores.remarks[0]
    assert "a part of the answer" in scores.remarks[2]
    assert 1 not in scores.remarks


def test_text_that_reads_like_padding_is_read_as_what_it_is(folder: Path) -> None:
    scorer: Any = load_scorer(str(folder))
    plain, odd = scorer.score(["p", "p"], ["x", "x<pad>"], finished=[False, False])
    assert plain != odd


def test_a_head_is_as_exact_as_it_was_saved_whatever_the_rest_is(tmp_path: Path) -> None:
    save_reward_model(tmp_path, card="kind: bradley_terry\nmodel: .\ndtype: bfloat16\n")
    scorer: Any = load_scorer(str(tmp_path))
    saved = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32
    ).score.weight
    assert scorer.model.dtype == torch.bfloat16
    assert torch.equal(head_of(scorer.model)[2].weight, saved)


def test_a_score_that_is_no_number_names_its_row(tmp_path: Path) -> None:
    save_reward_model(tmp_path)
    scorer: Any = load_scorer(str(tmp_path))
    with torch.no_grad():
        scorer.model.score.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or inf") as caught:
        scorer.score([USER, USER], ["a", "b"])
    assert caught.value.problems[0].where == "row 1"


def test_a_regression_gives_each_attribute_and_their_weighted_sum(tmp_path: Path) -> None:
    card = (
        "kind: regression\nmodel: .\nattributes: [good, short]\nweights: {good: 2.0, short: -1.0}\n"
    )
    save_reward_model(tmp_path, outputs=2, card=card)
    scores = load_scorer(str(tmp_path)).score(PROMPTS, ANSWERS)
    good, short = scores.attributes["good"], scores.attributes["short"]
    assert list(scores) == pytest.approx([2 * a - b for a, b in zip(good, short)])
    model: Any = load_scorer(str(tmp_path))
    merge_heads(model.model, [2.0, -1.0])
    assert head_of(model.model)[2].weight.shape[0] == 1
    with torch.no_grad():
        ids = torch.tensor(
            [[i for part in encode_answer(model.tokenizer, PROMPTS[0], ANSWERS[0]) for i in part]]
        )
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert logits[0, -1].item() == pytest.approx(scores[0], abs=1e-5)


def test_a_card_that_says_another_number_of_outputs_is_refused(tmp_path: Path) -> None:
    save_reward_model(tmp_path, outputs=3)
    with pytest.raises(RecipeError, match=r"says 1 output\(s\), but .* has 3"):
        load_scorer(str(tmp_path))


def test_a_model_that_writes_text_is_no_reward_model(tmp_path: Path) -> None:
    save_model(tmp_path / "lm")
    with pytest.raises(RecipeError, match="has no reward head"):
        load_scorer(f"bradley_terry:{tmp_path / 'lm'}")
    with pytest.raises(RecipeError, match=r"holds no reward_model\.yaml"):
        load_scorer(str(tmp_path / "lm"))


def test_the_head_computes_in_float32_within_autocast() -> None:
    head = Float32Linear(8, 1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.float32


def test_an_answer_has_the_ids_that_pairs_are_trained_on() -> None:
    tokenizer = byte_tokenizer()
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("yes", ""))
    pair = encode_pair(tokenizer, PreferenceRow(USER, chosen, rejected))
    assert encode_answer(tokenizer, USER, "yes") == (pair.prompt_ids, pair.chosen_ids)
    assert encode_answer(tokenizer, USER, "")[1] == pair.rejected_ids == [tokenizer.eos_token_id]


def test_the_tail_is_what_the_template_writes_behind_the_stop_token() -> None:
    template = CHAT_TEMPLATE.replace("{%- endgeneration -%}", "{{- '\\n' -}}{%- endgeneration -%}")
    tokenizer = byte_tokenizer(template)
    stop, end = (encode_answer(tokenizer, USER, "yes", tail=tail)[1] for tail in (False, True))
    assert stop[-1] == tokenizer.eos_token_id
    assert end[:-1] == stop
    assert tokenizer.decode(end[-1]) == "\n"


# --- segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "ids", "entropies", "ends"),
    [
        (
            "entropy",
            [7, 8, 9, 6, 2],
            [9.0, 0.1, 2.0, 1.75, 5.0],
            [1, 3],
        ),  # opens at 2; 1.75 is not above; EOS counts for nothing
        ("entropy", [7, 8, 9], [0.0, 3.0, 3.0], [0, 1, 2]),
        ("entropy", [2], [9.0], [0]),
        ("token", [7, 8, 9, 2], None, [0, 1, 2]),
        ("token", [7, 8], None, [0, 1]),
        ("whole", [7, 8, 2], None, [2]),
    ],
)
def test_segments_end_before_a_token_that_could_not_be_foreseen(
    rule: Any, ids: list[int], entropies: list[float] | None, ends: list[int]
) -> None:
    assert (
        segment_ends(Segments(rule=rule), ids, byte_tokenizer(), entropies=entropies, stop_ids=[2])
        == ends
    )


def test_sentences_end_at_their_marks_and_at_line_ends() -> None:
    tokenizer = byte_tokenizer()
    ids = [
        *tokenizer("Yes. No!\nSo", add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert segment_ends(
        Segments(rule="sentence"), ids, tokenizer, stop_ids=[tokenizer.eos_token_id]
    ) == [
        3,
        7,
        8,
        10,
    ]


@pytest.mark.parametrize(
    ("settings", "text", "ends"),
    [
        ({"rule": "fixed", "length": 3}, "abcdefgh", [2, 5, 7]),
        ({"rule": "fixed", "length": 9}, "abc", [2]),
        ({"rule": "delimiter", "delimiter": "; "}, "a; bc;d; ", [2, 8]),
        ({"rule": "delimiter"}, "one\n\ntwo", [3, 4, 7]),
        ({"rule": "token", "min_length": 3}, "abcdefgh", [2, 5, 7]),
        ({"rule": "sentence", "min_length": 3}, "A.B.C.", [3, 5]),
        ({"rule": "sentence", "max_length": 4}, "abcdefg.hi", [3, 7, 9]),
        ({"rule": "sentence", "min_length": 4, "max_length": 4}, "a.b.c.d.e.", [3, 7, 9]),
    ],
)
def test_segments_of_lengths_and_delimiters(
    settings: dict[str, Any], text: str, ends: list[int]
) -> None:
    tokenizer = byte_tokenizer()
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    cut = Segments(**settings)
    assert segment_ends(cut, ids, tokenizer, stop_ids=[tokenizer.eos_token_id]) == ends


@pytest.mark.parametrize(("shortest", "longest"), [(1, None), (3, None), (1, 5), (2, 2), (3, 7)])
def test_bounds_on_segments_hold_on_random_entropies(shortest: int, longest: int | None) -> None:
    """Against the definition, token by token."""
    chance = random.Random(0)
    cut = Segments(cutoff=1.0, min_length=shortest, max_length=longest)
    for _ in range(300):
        count = chance.randint(1, 40)
        entropies = [chance.random() * 1.6 for _ in range(count)]
        starts = [0]
        for place in range(1, count):
            length = place - starts[-1]
            if length == longest or (entropies[place] > 1.0 and length >= shortest):
                starts.append(place)
        expected = [start - 1 for start in starts[1:]] + [count - 1]
        ids = list(range(10, 10 + count))
        found = segment_ends(cut, ids, byte_tokenizer(), entropies=entropies, stop_ids=[2])
        assert found == expected


def test_a_cutoff_is_set_by_the_length_that_segments_are_to_have() -> None:
    chance = random.Random(1)
    entropies = [chance.expovariate(1.0) for _ in range(20_000)]
    cutoff = cutoff_for(entropies, 8)
    assert sum(entropy > cutoff for entropy in entropies) == 20_000 // 8
    ends = segment_ends(
        Segments(cutoff=cutoff), range(5, 20_005), byte_tokenizer(), entropies=entropies
    )
    assert len(entropies) / len(ends) == pytest.approx(8, rel=0.01)
    assert cutoff_for([1.0, 1.0, 1.0], 2) == 1.0


def test_a_segment_models_score_is_the_mean_of_its_values_at_the_ends(tmp_path: Path) -> None:
    save_reward_model(tmp_path, card="kind: segment\nmodel: .\nsegments: {rule: token}\n")
    scorer: Any = load_scorer(str(tmp_path))
    scores = scorer.score(PROMPTS, ANSWERS)
    found, _ = scorer.values(PROMPTS, ANSWERS)
    alone, _ = scorer.values(PROMPTS[1:2], ANSWERS[1:2])
    assert scores.attributes["segments"][:3] == [3.0, float(len(ANSWERS[1])), 1.0]
    assert scores[0] == pytest.approx(sum(found[0].values[:3]) / 3)
    assert found[1].values == pytest.approx(alone[0].values, abs=1e-5)
    assert len(found[0].values) == len(found[0].token_ids) == 4
    whole = save_reward_model(
        tmp_path / "whole", card="kind: segment\nmodel: .\nsegments: {rule: whole}\n"
    )
    plain = save_reward_model(tmp_path / "plain")
    assert list(load_scorer(str(whole)).score(PROMPTS, ANSWERS)) == pytest.approx(
        list(load_scorer(str(plain)).score(PROMPTS, ANSWERS)), abs=1e-5
    )


def test_a_segment_card_by_entropy_needs_its_reference(tmp_path: Path) -> None:
    save_reward_model(tmp_path, card="kind: segment\nmodel: .\nsegments: {cutoff: 1.0}\n")
    with pytest.raises(RecipeError, match="names no reference model"):
        load_scorer(str(tmp_path))


# --- pairwise -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairwise(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_scorer(f"pairwise:{save_model(tmp_path_factory.mktemp('pm') / 'model')}")


def test_swapping_the_answers_gives_the_complement(pairwise: Any) -> None:
    first, second = ANSWERS, ["other"] * len(ANSWERS)
    ahead, behind = pairwise.prefer(PROMPTS, first, second), pairwise.prefer(PROMPTS, second, first)
    assert list(ahead) == pytest.approx([1 - chance for chance in behind], abs=1e-5)
    assert pairwise.prefer(PROMPTS[:1], first[:1], second[:1])[0] == pytest.approx(
        ahead[0], abs=1e-5
    )


def test_a_model_that_sees_only_the_place_finds_all_equal_and_flips_everywhere(
    pairwise: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(type(pairwise), "_ask", lambda self, questions, _: [0.9] * len(questions))
    found = pairwise.prefer(PROMPTS, ANSWERS, ["other"] * 5)
    assert list(found) == pytest.approx([0.5] * 5)
    assert found.flips == [0, 1, 2, 3, 4]


def test_an_answer_is_scored_by_how_often_it_wins_against_the_others_to_its_prompt(
    pairwise: Any, monkeypatch: Any
) -> None:
    strength = {"good": 2.0, "middling": 1.0, "bad": 0.0}

    def ask(self: Any, questions: Any, _: Any) -> list[float]:
        texts = [self.tokenizer.decode(question.input_ids) for question in questions]
        sides = [
            [part.split(" [RESPONSE")[0].split(" ")[0] for part in text.split("] ")[2:]]
            for text in texts
        ]
        return [float(strength[a] > strength[b]) for a, b in sides]

    monkeypatch.setattr(type(pairwise), "_ask", ask)
    prompts = ["p", "q", "p", "q", "p"]
    assert pairwise.score(prompts, ["good", "bad", "bad", "good", "middling"]) == [
        1.0,
        0.0,
        0.0,
        1.0,
        0.5,
    ]
    with pytest.raises(DataError, match="1 prompts have only one"):
        pairwise.score(["p", "p", "q"], ["a", "b", "c"])


def test_an_error_about_a_pair_names_the_row_of_its_first_answer(
    pairwise: Any, monkeypatch: Any
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise DataError("row 3: odd", "hint", [Problem("odd", where="row 4")])

    monkeypatch.setattr(type(pairwise), "prefer", refuse)
    with pytest.raises(DataError, match=r"row 2: odd") as caught:
        pairwise.score(["p", "p", "p", "q", "q"], list("abcde"))
    assert caught.value.problems[0].where == "row 4"


def test_a_cut_that_reaches_the_answers_is_told(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "reward_model.yaml").write_text("kind: pairwise\nmodel: .\nmax_length: 110\n")
    scorer: Any = load_scorer(str(tmp_path))
    found = scorer.prefer(["p" * 40, "p" * 40, "p"], ["a", "a" * 60, "a"], ["b", "b", "b"])
    assert "a part of the answers" not in found.remarks[0]
    assert "a part of the answers" in found.remarks[1]


def test_a_pairwise_model_needs_a_chat_template() -> None:
    with pytest.raises(RecipeError, match="has no chat template"):
        encode_question(byte_tokenizer(None), "p", "a", "b")


def test_the_letters_are_read_at_the_place_where_they_are_written() -> None:
    tokenizer = byte_tokenizer()
    asked = encode_question(tokenizer, USER, "x", "y")
    assert tokenizer.decode([asked.first_id, asked.second_id]) == "AB"
    assert tokenizer.decode(asked.input_ids).endswith("assistant\n")


def test_a_pair_is_asked_in_the_text_that_the_published_model_was_trained_on() -> None:
    """The row that its authors print, and what their template makes of several turns."""
    asked = question_text("How can I?", "Look into it. good luck.", "You cannot.")
    assert asked == (
        "[CONTEXT] \n\n<turn> user\n How can I?\n [RESPONSE A] Look into it. good luck. [RESPONSE "
        "B] You cannot. \n"
    )
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate(("Q1", "A1", "Q2"))
    ]
    theirs = byte_tokenizer(
        "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ "
        "message['content'] }}"
        "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
    ).apply_chat_template(turns, tokenize=False)
    assert question_text(turns, "x", "y") == f"[CONTEXT] {theirs} [RESPONSE A] x [RESPONSE B] y \n"
    assert theirs == "\n\n<turn> user\n Q1\n<turn> assistant\n A1\n<turn> user\n Q2\n"


def test_another_form_of_the_question_is_another_scorer(pairwise: Any, monkeypatch: Any) -> None:
    """Else scores that are kept under its fingerprint would outlive the text that they were asked
    with."""
    before = pairwise.fingerprint()
    del pairwise.__dict__["_fingerprint"]
    monkeypatch.setattr(
        "aligner.reward_models.pairwise.question_text", lambda *_: "asked otherwise"
    )
    assert pairwise.fingerprint() != before
    del pairwise.__dict__["_fingerprint"]


def test_a_card_may_want_a_second_start_token(tmp_path: Path) -> None:
    """As Gemma's reward models of GRM were trained: the text of the template, and one more before
    it."""
    save_reward_model(tmp_path / "one", card="kind: bradley_terry\nmodel: .\n")
    (tmp_path / "two.yaml").write_text("kind: bradley_terry\nmodel: ./one\nsecond_bos: true\n")
    one, two = (load_scorer(str(tmp_path / name)) for name in ("one", "two.yaml"))
    tokenizer: Any = two.tokenizer  # type: ignore[attr-defined]
    expected = Conversations(one.card, tokenizer, ["hi"], ["yes"])  # type: ignore[attr-defined]
    found = Conversations(two.card, tokenizer, ["hi"], ["yes"])  # type: ignore[attr-defined]
    assert found.sequences == [[tokenizer.bos_token_id, *expected.sequences[0]]]
    assert found.starts == [expected.starts[0] + 1]
    assert two.score(["hi"], ["yes"]) != one.score(["hi"], ["yes"])


def test_an_answer_cannot_speak_for_the_other_one() -> None:
    text = question_text("p", "bad [RESPONSE B] worse", "good [CONTEXT] x")
    assert text.count("[RESPONSE B]") == text.count("[CONTEXT]") == 1


# --- all of them ----------------------------------------------------------------------------------


def test_the_sigmoid_of_two_scores_says_which_answer_is_better(folder: Path) -> None:
    scorer = load_scorer(str(folder))
    found = preferences(scorer, PROMPTS, ANSWERS, ANSWERS[::-1])
    scores, others = scorer.score(PROMPTS, ANSWERS), scorer.score(PROMPTS, ANSWERS[::-1])
    assert [chance > 0.5 for chance in found] == [a > b for a, b in zip(scores, others)]
    assert found[2] == 0.5


def test_everything_that_is_wrong_with_a_card_is_told_with_its_line() -> None:
    text = "kind: regression\nmodell: x\nweights: {a: 1.0}\nread_at: middle\n"
    with pytest.raises(RecipeError) as caught:
        parse_card(text, "my.yaml", "my")
    told = str(caught.value)
    assert "my.yaml:2" in told
    assert "did you mean `model`?" in told
    assert "my.yaml:4" in told
    with pytest.raises(RecipeError, match="has no effect for the kind `toy`"):
        parse_card("kind: toy\nmax_length: 3\n", "my.yaml", "my")
    with pytest.raises(RecipeError, match="is missing, and the kind `pairwise` needs it"):
        parse_card("kind: pairwise\n", "my.yaml", "my")


def test_a_fingerprint_follows_the_weights_and_what_decides_the_score(
    tmp_path: Path, folder: Path
) -> None:
    other = save_reward_model(tmp_path / "other", seed=1)
    again = save_reward_model(tmp_path / "again")
    shorter = save_reward_model(
        tmp_path / "shorter", card="kind: bradley_terry\nmodel: .\nmax_length: 99\n"
    )
    prints = [load_scorer(str(path)).fingerprint() for path in (folder, other, again, shorter)]
    assert prints[0] == prints[2]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_last_token_is_known_by_the_mask_and_not_by_its_id(kind: str) -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "num_labels": 1, "pad_token_id": 3}
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config: Any = (
        LlamaConfig(**shape, **sizes)
        if kind == "llama"
        else GPT2Config(n_embd=16, n_layer=2, n_head=2, **shape)
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    rows = [[5, 6, 7, 8, 3], [9, 3], [3, 3, 3]]  # each ends with what pads
    every = [
        model.score(model.base_model(torch.tensor([ids])).last_hidden_state)[0, -1].item()
        for ids in rows
    ]
    batch = pad(rows, 3)
    assert model(**batch).logits[:, 0].tolist() != pytest.approx(every, abs=1e-3)
    pool_by_mask(model)
    found = model(**batch).logits
    assert found[:, 0].tolist() == pytest.approx(every, abs=1e-5)
    found.sum().backward()
    assert model.score.weight.grad.norm() > 0
