"""Answers that share a prompt have the log-probabilities and gradients of answers in rows of their
own, and models that would not give them are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama
from mixtures import mixture
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from aligner.models.answers import answer_logps, pad_answers, share_answers, stack_answers
from aligner.models.fused_head import fuse_head
from aligner.models.shared_prefix import (
    attention_of,
    common_prefix,
    is_worth_sharing,
    lay_out,
    share_saved,
    why_not_alike,
    why_not_shared,
)

PAD = 0
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, Any] = {
    "qwen3": Qwen3Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "gpt2": GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
    ),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "gemma2": (Gemma2Config(**SHAPE), "layers of sliding_attention"),
    "gemma3": (Gemma3TextConfig(**SHAPE), "layers of sliding_attention"),
    "mistral with a window": (MistralConfig(**SHAPE, sliding_window=4), "4 tokens back"),
}


def model_of(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        return tiny_llama(byte_tokenizer(), initializer_range=0.3)
    if name == "mixtral":
        return mixture(name).eval()
    config = CONFIGS[name] if name in CONFIGS else REFUSED[name][0]
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


Groups = list[list[tuple[list[int], list[int]]]]


def pairs(seed: int = 0) -> Groups:
    """Pairs of all sorts: a common prompt, answers that begin alike, one that is the other's
    beginning, one answer twice, nothing in common, and a prompt of one token."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(5, 250, (length,), generator=generator).tolist()

    prompt, start, same = draw(12), draw(4), draw(5)
    return [
        [(prompt, draw(6)), (prompt, draw(3))],
        [(prompt[:7], [*start, *draw(3)]), (prompt[:7], [*start, *draw(5)])],
        [(prompt[:5], start), (prompt[:5], [*start, 7, 8])],
        [(prompt[:4], same), (prompt[:4], same)],
        [(draw(6), draw(2)), (draw(3), draw(4))],
        [(prompt[:1], draw(2)), (prompt[:1], draw(2))],
    ]


def scored(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, lengths, and the gradients of a sum that weighs each answer its own
    way."""
    model.zero_grad()
    logps, lengths = answer_logps(model, batch)
    (logps * torch.linspace(-1, 1, len(logps))).sum().backward()
    gradients = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    return logps.detach(), lengths, gradients


# --- how rows are laid out ------------------------------------------------------------------------


def test_a_pair_in_a_row_by_hand() -> None:
    rows = lay_out([[[5, 6, 7, 8], [5, 6, 9]]], PAD)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert rows.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert rows.groups.tolist() == [[0, 0, 0, 0, 0]]
    assert rows.branches.tolist() == [[0, 0, 1, 1, 2]]
    assert rows.places == [[0, 1, 2, 3], [0, 1, 4]]
    mask = attention_of(tiny_llama(byte_tokenizer()), rows.groups, rows.branches)
    assert (mask == 0).int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 0],
                [1, 1, 0, 0, 1],
            ]
        ]
    ]


def test_groups_fill_rows_as_long_as_the_longest_needs() -> None:
    groups = [[[1, 2], [1, 3]], [[1, 2, 3, 4], [1, 2, 3, 5]], [[7], [8]]]
    rows = lay_out(groups, PAD)
    # 3, 5 and 2 tokens: the longest fills a row, the others go into another
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 7, 8]]
    assert rows.groups.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 2, 2]]
    assert rows.places[4:] == [[8], [9]]


def test_what_is_in_common_and_what_that_saves() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_prefix([[1], [2]]) == 0
    assert common_prefix([[1, 2], [1, 2]]) == 2
    # rows of their own: 4 x 4 = 16 places; shared: 2 x 5
    groups = [[[1, 2, 3, 4], [1, 2, 3, 5]], [[1, 2, 6], [1, 2, 7]]]
    assert share_saved(groups) == pytest.approx(1 - 10 / 16)
    assert share_saved([[[1], [2]]]) == 0


def test_where_little_is_saved_answers_stay_in_rows_of_their_own() -> None:
    little: Groups = [[([1], list(range(2, 30))), ([1], list(range(40, 70)))]]
    assert "labels" in stack_answers(little, PAD, "auto")
    assert "labels" not in stack_answers(little, PAD, "shared")
    much: Groups = [[(list(range(1, 30)), [2]), (list(range(1, 30)), [3])]]
    assert "labels" not in stack_answers(much, PAD, "auto")
    assert "labels" in stack_answers(much, PAD, "separate")


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gpt2", "mixtral"])
def test_log_probabilities_and_gradients_are_those_of_separate_rows(
    name: str, attention: str
) -> None:
    model = model_of(name)
    model.set_attn_implementation(attention)
    groups = pairs()
    fuse_head(model)
    separate = scored(model, pad_answers([group[k] for k in (0, 1) for group in groups], PAD))
    shared = scored(model, share_answers(groups, PAD))
    torch.testing.assert_close(shared[0], separate[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(shared[1], separate[1])
    for key, expected in separate[2].items():
        scale = float(expected.norm()) + 1e-6
        assert float((shared[2][key] - expected).norm()) < 1e-5 * scale + 1e-6, key


def test_three_answers_to_a_prompt_and_gradient_checkpointing() -> None:
    model = model_of("llama").train()
    groups = [[*group, (group[0][0], [9, 9, 200])] for group in pairs()]
    fuse_head(model)
    separate = scored(model, pad_answers([group[k] for k in range(3) for group in groups], PAD))
    model.gradient_checkpointing_enable()
    shared = scored(model, share_answers(groups, PAD))
    torch.testing.assert_close(shared[0], separate[0], rtol=1e-5, atol=1e-5)
    for key, expected in separate[2].items():
        torch.testing.assert_close(shared[2][key], expected, rtol=1e-4, atol=1e-5)


def test_the_mask_of_flex_attention_shows_what_the_other_shows() -> None:
    model = tiny_llama(byte_tokenizer())
    whole = [[[*prompt, *answer] for prompt, answer in group] for group in pairs()]
    rows = lay_out(whole, PAD)
    expected = attention_of(model, rows.groups, rows.branches)[:, 0] == 0
    model.config._attn_implementation = "flex_attention"
    block = attention_of(model, rows.groups, rows.branches)
    size = rows.groups.shape
    row, query, key = torch.meshgrid(
        torch.arange(size[0]), torch.arange(size[1]), torch.arange(size[1]), indexing="ij"
    )
    assert torch.equal(block.mask_mod(row, torch.tensor(0), query, key), expected)
    assert block.shape == (size[0], 1, size[1], size[1])


# --- models that may not --------------------------------------------------------------------------


def sequences() -> list[list[list[int]]]:
    return [[[*prompt, *answer] for prompt, answer in group] for group in pairs()[:2]]


@pytest.mark.parametrize("name", REFUSED)
def test_windows_are_refused_by_config(name: str) -> None:
    config, why = REFUSED[name]
    assert why in why_not_shared(config, "sdpa")
    assert why in why_not_alike(model_of(name), sequences())


def test_attention_that_takes_no_mask_is_refused() -> None:
    assert "flash_attention_2" in why_not_shared(CONFIGS["qwen3"], "flash_attention_2")
    assert why_not_shared(CONFIGS["qwen3"], "sdpa") == ""


def test_states_that_run_on_are_refused() -> None:
    config = MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = AutoModelForCausalLM.from_config(config)
    assert "linear_attention" in why_not_alike(model, sequences())
    hidden = tiny_llama(byte_tokenizer())
    hidden._is_stateful = True  # where the config does not tell
    assert "state from token to token" in why_not_alike(hidden, sequences())


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gpt2", "mixtral"])
def test_full_attention_is_proved_on_the_model(name: str) -> None:
    model = model_of(name)
    before = [module.training for module in model.modules()]
    assert why_not_alike(model, sequences()) == ""
    assert [module.training for module in model.modules()] == before


def test_a_window_that_the_config_does_not_tell_is_found_on_the_model() -> None:
    model = model_of("mistral with a window")
    model.config.sliding_window = None  # said nowhere, and in force all the same
    own = model.model.forward

    def windowed(*args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
        if attention_mask.dim() == 4:
            width = attention_mask.shape[-1]
            near = torch.ones(width, width, dtype=torch.bool).triu(-3)
            attention_mask = attention_mask.masked_fill(~near, torch.finfo(torch.float32).min)
            return own(*args, attention_mask=attention_mask, **kwargs)
        return own(*args, attention_mask=attention_mask, **kwargs)

    model.model.forward = lambda *args, **kwargs: (
        windowed(*args, **kwargs) if "attention_mask" in kwargs else own(*args, **kwargs)
    )
    assert "see each other" in why_not_alike(model, sequences())


def test_positions_that_are_ignored_are_found_on_the_model() -> None:
    model = model_of("gpt2")
    own = model.transformer.forward

    def counting(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    model.transformer.forward = counting
    assert "see each other" in why_not_alike(model, sequences())


def test_short_answers_to_a_long_prompt_are_proved_in_16_bits() -> None:
    """Over all tokens the rounding of the prompt would outweigh the few that could see others."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        initializer_range=0.02,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    ids = torch.randint(5, 250, (1500,)).tolist()
    assert why_not_alike(model, [[[*ids, 7, 8], [*ids, 9, 10]]]) == ""


def test_a_low_precision_of_float32_is_no_leak() -> None:
    """TF32 rounds more than float32 does; here random numbers stand in for it."""
    model = model_of("llama")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: out * (1 + 0.02 * torch.randn_like(out)))
    assert "see each other" in why_not_alike(model, sequences())
    torch.set_float32_matmul_precision("high")
    try:
        assert why_not_alike(model, sequences()) == ""
    finally:
        torch.set_float32_matmul_precision("highest")


def test_long_rows_stay_separate_since_their_mask_is_quadratic() -> None:
    prompt = [5] * 12_000
    two = [[[*prompt, 7], [*prompt, 8]], [[*prompt, 9], [*prompt, 6]]]
    assert is_worth_sharing(two[:1])  # 12,002 ** 2 < 2 ** 28
    assert not is_worth_sharing(two)
    assert share_saved(two) > 0.4


def test_layers_keep_one_mask_between_them_for_the_backward_pass() -> None:
    model = model_of("llama")
    model.set_attn_implementation("sdpa")
    fuse_head(model)
    batch = share_answers(pairs(), PAD)
    numbers = batch["input_ids"].numel() * batch["input_ids"].shape[1]
    kept: set[int] = set()

    def keep(saved: Tensor) -> Tensor:
        if saved.dim() == 4 and saved.shape[-1] == saved.shape[-2] and saved.numel() >= numbers:
            kept.add(saved.untyped_storage().data_ptr())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        logps = answer_logps(model, batch)[0]
    logps.sum().backward()
    assert len(model.model.layers) > 1
    assert len(kept) == 1
