"""Rows that share a sequence: which models keep them apart, how that is asked, and what a training
does with the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, small_recipe, tiny_llama
from transformers import AutoConfig, AutoModelForCausalLM

from aligner.errors import RecipeError
from aligner.events import Notice, StageProgress
from aligner.methods.pipeline import run_recipe
from aligner.models import row_sharing
from aligner.models.row_sharing import Shared, foretell_packing, packed, rows_apart, without_noise
from aligner.models.twin import NoTwin, random_twin, small_config
from aligner.tokenization import batching
from aligner.tokenization.batching import RowsApart


def small_model(kind: str, **settings: Any) -> Any:
    """A random model of a kind of transformers', made small from the defaults of its config."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(AutoConfig.for_model(kind), **settings))


def save_kind(folder: Path, kind: str, **settings: Any) -> Path:
    """Write a small model of a kind, with the tokenizer of one token a byte."""
    tokenizer = byte_tokenizer()
    ids = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    small_model(kind, vocab_size=len(tokenizer), **ids, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small OPT: its learned positions follow the positions that are given, its mask does not."""
    return save_kind(tmp_path_factory.mktemp("opt") / "model", "opt")


# --- asking a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "phi3", "mixtral"])
def test_models_that_hand_positions_to_their_mask_keep_packed_rows_apart(kind):
    assert rows_apart(small_model(kind)) == RowsApart(True)


@pytest.mark.parametrize("kind", ["opt", "gpt_oss", "bloom", "mpt", "mamba"])
def test_models_whose_rows_see_each_other_are_found_out(kind):
    found = rows_apart(small_model(kind))
    assert found.apart is False
    assert found.why.startswith("packed rows see each other in this model")


def with_a_mask(rows: Any) -> Shared:
    """Packed rows with an attention mask of ones, behind which transformers looks for no
    borders."""
    shared = packed(rows)
    ones = torch.ones_like(shared.inputs["input_ids"])
    return Shared({**shared.inputs, "attention_mask": ones}, shared.places)


def test_another_arrangement_is_asked_about_by_the_same_probe():
    model = tiny_llama(byte_tokenizer(), initializer_range=0.2)
    assert rows_apart(model, packed).apart is True
    assert rows_apart(model, with_a_mask).apart is False


def test_a_bfloat16_model_rounds_and_is_still_told_apart_from_one_that_leaks():
    model = tiny_llama(byte_tokenizer(), initializer_range=0.2).to(torch.bfloat16)
    assert rows_apart(model, packed).apart is True
    assert rows_apart(model, with_a_mask).apart is False


def test_a_model_that_cannot_read_packed_rows_is_quoted(monkeypatch):
    model = tiny_llama(byte_tokenizer())
    forward = model.forward

    def refuse(**inputs: Any) -> Any:
        if "seq_idx" in inputs:
            raise NotImplementedError("rows need `a_kernel`\nand more")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", refuse)
    assert rows_apart(model) == RowsApart(
        False, "the model cannot read packed rows (rows need `a_kernel`)"
    )


def test_a_model_that_hardly_reads_its_context_gives_no_answer():
    model = tiny_llama(byte_tokenizer())
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    assert rows_apart(model).apart is None


def test_dropout_is_off_while_rows_are_compared_and_on_again_afterwards():
    model = small_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    llama = tiny_llama(byte_tokenizer(), attention_dropout=0.5, initializer_range=0.2)
    assert rows_apart(llama).apart is True
    assert not llama.training
    assert (
        llama.model.layers[0].self_attn.attention_dropout == llama.config.attention_dropout == 0.5
    )
    ids = torch.arange(10, 20)[None]
    with without_noise(model), torch.no_grad():
        assert model.training
        assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


# --- a small model of the same kind ---------------------------------------------------------------


def test_a_twin_keeps_the_sizes_of_heads_their_groups_and_a_layer_of_each_kind():
    config = AutoConfig.for_model("gemma3_text", sliding_window=33)
    twin = small_config(config)
    assert set(twin.layer_types) == set(config.layer_types)
    assert len(twin.layer_types) == twin.num_hidden_layers == 2
    assert (twin.head_dim, twin.sliding_window) == (config.head_dim, 33)
    groups = [c.num_attention_heads / c.num_key_value_heads for c in (config, twin)]
    assert groups[0] == groups[1]
    assert (
        sum(p.numel() for p in AutoModelForCausalLM.from_config(small_config(config)).parameters())
        < 5e7
    )


@pytest.mark.parametrize(
    "kind", ["mamba2", "bamba", "deepseek_v3", "qwen2_moe", "falcon_h1", "lfm2"]
)
def test_twins_of_unusual_kinds_fit_together(kind):
    with torch.no_grad():
        logits = small_model(kind)(torch.arange(10, 20)[None], use_cache=False).logits
    assert torch.isfinite(logits).all()


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, input_ids=None, position_ids=None, **rest):
        return super().forward(input_ids=input_ids, **rest)
"""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ships with code of its own, which forgets positions."""
    folder = tmp_path_factory.mktemp("remote") / "model"
    folder.mkdir()
    tiny_llama(byte_tokenizer()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "own_llama.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own_llama.OwnConfig", "AutoModelForCausalLM": "own_llama.OwnModel"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "own-llama", "auto_map": own})
    )
    return folder


def model_of(folder: Path, **settings: Any) -> Any:
    flags = {f"model__{key}": value for key, value in settings.items()}
    return small_recipe("sft", folder.parent, folder.parent / "run", **flags).recipe.model


def test_code_that_ships_with_a_model_is_asked_too_if_it_is_trusted(remote):
    assert foretell_packing(model_of(remote, trust_remote_code=True)).apart is False
    with pytest.raises(RecipeError, match="trust_remote_code"):
        foretell_packing(model_of(remote))


def test_the_twin_of_an_adapters_base_is_asked(opt, tmp_path):
    from peft import LoraConfig, get_peft_model

    policy = AutoModelForCausalLM.from_pretrained(opt)
    policy.name_or_path = str(opt)
    get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "model"
    )
    assert foretell_packing(model_of(tmp_path / "model")).apart is False


def test_a_config_that_cannot_be_made_small_is_no_answer(small_world, monkeypatch):
    from aligner.models import twin

    monkeypatch.setattr(twin, "MOST_WEIGHTS", 10)
    with pytest.raises(NoTwin, match="weights"):
        random_twin(model_of(small_world / "model"))
    found = foretell_packing(model_of(small_world / "model"))
    assert found.apart is None
    assert "no small model of its kind" in found.why


# --- what a training does with the answer ---------------------------------------------------------


@pytest.fixture
def opt_world(opt: Path, small_world: Path, tmp_path: Path) -> Path:
    """The small world with the OPT in place of the Llama."""
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "model").symlink_to(opt)
    (tmp_path / "world" / "sft.jsonl").symlink_to(small_world / "sft.jsonl")
    return tmp_path / "world"


def train(world: Path, run: Path, *overrides: str, **flags: Any) -> tuple[Any, list[Any]]:
    events: list[Any] = []
    options = {key: flags.pop(key) for key in ("dry_run", "resume") if key in flags}
    recipe = small_recipe("sft", world, run, "trainer.max_steps=2", *overrides, **flags)
    return run_recipe(recipe, on_event=events.append, **options), events


@pytest.mark.parametrize("dry_run", [True, False])
def test_packing_that_is_asked_for_is_refused_before_tokenising_where_rows_would_meet(
    opt_world, tmp_path, dry_run
):
    events: list[Any] = []
    recipe = small_recipe("sft", opt_world, tmp_path / "run", sft__packing=True)
    with pytest.raises(RecipeError, match=r"sft\.packing: packed rows see each other") as caught:
        run_recipe(recipe, dry_run=dry_run, on_event=events.append)
    assert "set sft.packing=auto or false" in caught.value.hint
    assert not [event for event in events if isinstance(event, StageProgress)]


def test_auto_groups_rows_where_packed_ones_would_meet_and_says_why(
    opt_world, tmp_path, monkeypatch
):
    monkeypatch.setattr(batching, "STEPS_WORTH_PACKING", 0)
    monkeypatch.setattr(batching, "WORTHWHILE_PADDING", 0.0)
    outcome, _ = train(opt_world, tmp_path / "run")
    said = json.loads((outcome.run_dir / "data.json").read_text())["batching"]
    assert said.startswith("grouped by length")
    assert "packed rows see each other in this model" in said
    assert said in (outcome.run_dir / "report.html").read_text()


def test_auto_still_packs_for_a_model_that_keeps_rows_apart(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "STEPS_WORTH_PACKING", 0)
    monkeypatch.setattr(batching, "WORTHWHILE_PADDING", 0.0)
    outcome, _ = train(small_world, tmp_path / "run")
    assert json.loads((outcome.run_dir / "data.json").read_text())["batching"].startswith("packed")


def test_no_twin_is_made_where_rows_would_not_be_packed_anyway(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(row_sharing, "random_twin", None)
    train(small_world, tmp_path / "run")


def test_where_no_twin_can_be_made_auto_does_not_pack_and_true_waits_for_the_model(
    small_world, tmp_path, monkeypatch
):
    def none(model: Any) -> Any:
        raise NoTwin("odd sizes")

    monkeypatch.setattr(row_sharing, "random_twin", none)
    _, events = train(small_world, tmp_path / "packed", sft__packing=True)
    assert any("is tested once it is loaded" in e.text for e in events if isinstance(e, Notice))
    monkeypatch.setattr(batching, "STEPS_WORTH_PACKING", 0)
    monkeypatch.setattr(batching, "WORTHWHILE_PADDING", 0.0)
    outcome, _ = train(small_world, tmp_path / "auto")
    said = json.loads((outcome.run_dir / "data.json").read_text())["batching"]
    assert said.startswith("grouped by length")
    assert "odd sizes" in said


@pytest.mark.parametrize("lora", [{}, {"model__lora": {"r": 2, "target_modules": ["q_proj"]}}])
def test_the_loaded_model_is_asked_once_more_before_its_first_step(
    opt_world, tmp_path, monkeypatch, lora
):
    """Rows that were packed by an older aligner, say: they lie in the run directory, and only the
    model can tell."""
    monkeypatch.setattr(row_sharing, "foretell_packing", lambda model: RowsApart(True))
    with pytest.raises(RecipeError, match=r"sft\.packing: packed rows see each other"):
        train(opt_world, tmp_path / "run", sft__packing=True, **lora)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
