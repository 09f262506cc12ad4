"""A merged model is the adapter on its base, and nothing is kept that is not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, save_lora_reward_model, save_model, small_recipe, tiny_llama
from runner import aligner
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from aligner.config.recipe import Lora, Model
from aligner.errors import DataError, RecipeError, UsageError
from aligner.export import merge as merging
from aligner.export.merge import merge
from aligner.export.probes import compare
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.lineage import lineage

IDS = torch.tensor([[9, 20, 31, 42, 4, 5]])


def save_adapter(folder: Path, base: Path, seed: int = 0, **settings: Any) -> Path:
    """A random adapter on a base, with its tokenizer. `settings`: of LoRA, and `new_tokens`."""
    tokens = settings.pop("new_tokens", [])
    section = Model(name_or_path=str(base), lora=Lora(r=2, **settings), new_tokens=tokens)
    tokenizer = load_tokenizer(section)
    adapted = load_policy(section, tokenizer, trainable=True)
    draw = torch.Generator().manual_seed(seed)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data + 0.1 * torch.randn(weight.shape, generator=draw)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapter_logits(adapter: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """What PEFT computes with the adapter on its base, in float32."""
    from peft import PeftModel

    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokens = len(AutoTokenizer.from_pretrained(adapter))
    if tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokens)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, adapter).eval()(ids).logits


def plain_logits(folder: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    """What plain transformers computes with a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def run(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short LoRA run."""
    folder = tmp_path_factory.mktemp("run") / "sft"
    run_recipe(small_recipe("sft", small_world, folder, model__lora={"r": 4}))
    return folder


def test_a_run_is_merged_into_a_plain_model(run: Path, tmp_path: Path) -> None:
    merged = merge(str(run), tmp_path / "merged")
    assert not (merged.folder / "adapter_config.json").exists()
    torch.testing.assert_close(
        plain_logits(merged.folder), adapter_logits(run / "final"), atol=1e-4, rtol=0
    )
    found = merged.record["verified"]
    assert 0 <= found["largest_difference"] < 1e-4
    assert found["top1_agreement"] == 1.0
    assert merged.record["adapter_effect"]["mean_difference"] > 100 * found["mean_difference"]
    assert json.loads((merged.folder / "merge.json").read_text()) == merged.record
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


def test_vocabulary_and_tokenizer_stay_as_they_were(run: Path, tmp_path: Path) -> None:
    folder = merge(str(run), tmp_path / "merged").folder
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (run / "final" / name).read_bytes()
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert size == len(byte_tokenizer())


def test_the_card_says_how_far_off_it_is(run: Path, tmp_path: Path) -> None:
    text = (merge(str(run), tmp_path / "merged").folder / "README.md").read_text("utf-8")
    assert "library_name: transformers" in text
    assert "A fine-tuned version of" in text
    assert "## Merged" in text
    assert "likeliest tokens agree" in text
    assert "## Lineage" in text


def test_an_adapter_of_no_run_is_merged_too(small_world: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", small_world / "model")
    folder = merge(str(adapter), tmp_path / "merged").folder
    torch.testing.assert_close(plain_logits(folder), adapter_logits(adapter), atol=1e-4, rtol=0)
    assert "No run of aligner made the adapter" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_keep_their_rows(tmp_path: Path, tied: bool) -> None:
    base = save_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = save_adapter(tmp_path / "adapter", base, new_tokens=["<think>", "</think>"])
    size = len(byte_tokenizer())
    ids = torch.tensor([[9, size, 20, size + 1]])
    merged = merge(str(adapter), tmp_path / "merged")
    torch.testing.assert_close(
        plain_logits(merged.folder, ids), adapter_logits(adapter, ids), atol=1e-4, rtol=0
    )
    assert merged.record["verified"]["probes"] == 9, "the new tokens are a probe of their own"


def test_an_adapter_on_tied_embeddings_makes_them_two(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["embed_tokens", "q_proj"])
    folder = merge(str(adapter), tmp_path / "merged").folder
    torch.testing.assert_close(plain_logits(folder), adapter_logits(adapter), atol=1e-4, rtol=0)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_type_is_that_of_the_base_unless_another_is_asked_for(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer).to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapter = save_adapter(tmp_path / "adapter", base)
    short = merge(str(adapter), tmp_path / "short")
    assert short.record["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(short.folder).dtype == torch.bfloat16
    long = merge(str(adapter), tmp_path / "long", dtype="float32")
    assert AutoModelForCausalLM.from_pretrained(long.folder).dtype == torch.float32
    apart = [one.record["verified"]["largest_difference"] for one in (long, short)]
    assert apart[0] < 1e-4 < apart[1]


def test_a_reward_model_keeps_its_head(small_world: Path, tmp_path: Path) -> None:
    from aligner.reward_models.catalogue import load_scorer

    adapter = save_lora_reward_model(tmp_path / "rm", small_world / "model")
    merged = merge(str(adapter), tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(merged.folder)
    assert model.score.weight.shape[0] == 1
    assert merged.record["compared"] == "scores"
    asked = (["sort: ba", "sort: dc"], ["ab", "cd"])
    before, after = (load_scorer(str(place)).score(*asked) for place in (adapter, merged.folder))
    assert list(before) == pytest.approx(list(after), abs=1e-5)


def test_an_adapter_of_four_bits_goes_onto_the_unquantized_base(
    small_world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    overrides = {"model__lora": {"r": 4}, "model__quantization": "nf4"}
    run_recipe(small_recipe("sft", small_world, run, **overrides))
    merged = merge(str(run), tmp_path / "merged")
    torch.testing.assert_close(
        plain_logits(merged.folder), adapter_logits(run / "final"), atol=1e-4, rtol=0
    )
    trained = merged.record["trained_in"]
    assert trained["quantization"] == "nf4"
    assert trained["largest_difference"] > merged.record["verified"]["largest_difference"]
    assert "trained on the base in nf4" in (merged.folder / "README.md").read_text("utf-8")


# --- what is refused ------------------------------------------------------------------------------


def test_a_merge_that_drifts_is_not_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.models import adapters

    honest = adapters.merge_adapter

    def faulty(adapted: Any) -> Any:
        merged = honest(adapted)
        merged.model.layers[0].mlp.down_proj.weight.data *= 1.5
        return merged

    monkeypatch.setattr(adapters, "merge_adapter", faulty)
    with pytest.raises(DataError, match=r"in float32, logits differ by .* is allowed"):
        merge(str(run), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_logit_that_is_not_a_number_is_drift(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.models import read_back

    honest = read_back.read_back

    def faulty(folder: str, **settings: Any) -> Any:
        model = honest(folder, **settings)
        model.lm_head.weight.data[7, 0] = float("nan")
        return model

    monkeypatch.setattr(read_back, "read_back", faulty)
    with pytest.raises(DataError, match="logits differ by nan%"):
        merge(str(run), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_the_numbers_of_a_comparison_are_those_worked_out_by_hand() -> None:
    a, b = torch.zeros(2, 40), torch.zeros(2, 40)
    a[0, 3], b[0, 3] = 4.0, 4.5  # the same token is likeliest
    a[1, 5], b[1, 6] = 4.0, 4.0  # another one
    found = compare([a], [b])
    assert (found.probes, found.positions) == (1, 2)
    assert found.largest_difference == 4.0
    assert found.mean_difference == pytest.approx((0.5 + 4 + 4) / 80)
    assert found.spread == pytest.approx((4**2 / 40 - (4 / 40) ** 2) ** 0.5)
    assert found.top1_agreement == 0.5


def test_the_spread_of_scores_is_that_over_the_probes() -> None:
    found = compare([torch.tensor([[1.0]]), torch.tensor([[3.0]])], [torch.zeros(1, 1)] * 2)
    assert (found.spread, found.mean_difference) == (1.0, 2.0)


def test_what_has_no_adapter_is_refused(small_world: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no adapter: there is nothing to merge"):
        merge(str(small_world / "model"), tmp_path / "merged")


def test_a_base_that_is_packed_itself_is_refused(run: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(run / "final", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = shutil.copytree(config["base_model_name_or_path"], tmp_path / "base")
    said = json.loads((base / "config.json").read_text())
    said["quantization_config"] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (base / "config.json").write_text(json.dumps(said))
    config["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="is itself stored in nf4"):
        merge(str(adapter), tmp_path / "merged")


def test_prompt_tuning_cannot_be_merged(small_world: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(small_world / "model")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(RecipeError, match="cannot be merged into its base"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")


def test_an_unfinished_run_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "manifest.json").unlink()
    with pytest.raises(UsageError, match="has not finished"):
        merge(str(copy), tmp_path / "merged")


# --- the place ------------------------------------------------------------------------------------


def test_a_folder_of_somebody_else_is_never_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match=r"holds no merge\.json: we did not write it"):
        merge(str(run), tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged" / "thesis.txt").read_text() == "years"


def test_the_model_that_is_read_is_never_replaced(run: Path) -> None:
    for place in (run / "final", run):
        with pytest.raises(UsageError, match="is, or holds, the model that is read"):
            merge(str(run), place, overwrite=True)


def test_an_earlier_merge_is_replaced_when_asked(run: Path, tmp_path: Path) -> None:
    merge(str(run), tmp_path / "merged")
    with pytest.raises(UsageError, match="exists"):
        merge(str(run), tmp_path / "merged")
    (tmp_path / "merged" / "old.txt").write_text("old")
    merge(str(run), tmp_path / "merged", overwrite=True)
    assert not (tmp_path / "merged" / "old.txt").exists()


def test_what_a_kill_left_is_not_taken_over(run: Path, tmp_path: Path) -> None:
    left = tmp_path / "merged.unfinished" / "whole"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"half")
    folder = merge(str(run), tmp_path / "merged").folder
    assert not (folder / "half.safetensors").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["merged"]


def test_stopped_while_writing_nothing_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "move", stop)
    with pytest.raises(KeyboardInterrupt):
        merge(str(run), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_before_the_last_step_nothing_half_stands_there(
    small_world: Path, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", small_world / "model")
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from aligner.export import merge as merging\n"
        "merging.move = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "merging.merge(sys.argv[1], Path(sys.argv[2]))\n"
    )
    place = tmp_path / "merged"
    done = subprocess.run([sys.executable, "-c", code, str(adapter), str(place)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not place.exists()
    assert (tmp_path / "merged.unfinished" / "whole" / "model.safetensors").is_file()
    folder = merge(str(adapter), place).folder
    torch.testing.assert_close(plain_logits(folder), adapter_logits(adapter), atol=1e-4, rtol=0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["adapter", "merged"]


# --- lineage, and the command ---------------------------------------------------------------------


def test_lineage_leads_through_a_merged_model(run: Path, tmp_path: Path, small_world: Path) -> None:
    folder = merge(str(run), tmp_path / "merged").folder
    further = tmp_path / "dpo"
    recipe = small_recipe("dpo", small_world, further, model__name_or_path=str(folder))
    run_recipe(recipe)
    kinds = [(entry["kind"], Path(entry["path"]).name) for entry in lineage(further)]
    assert kinds[:3] == [("run", "dpo"), ("merged model", "merged"), ("run", "sft")]
    card = (further / "final" / "README.md").read_text("utf-8")
    assert "→ merged model `" in card


def test_the_command_prints_what_it_found(run: Path, tmp_path: Path) -> None:
    result = aligner("merge", run, "-o", tmp_path / "merged")
    assert result.exit_code == 0, result.output
    assert "largest difference" in result.stdout
    assert "same likeliest token" in result.stdout
    again = aligner("merge", run, "-o", tmp_path / "merged", "--overwrite", "--json")
    assert json.loads(again.stdout)["verified"]["positions"] > 100
    answer = aligner("generate", tmp_path / "merged", "sort: cab", "--max-new-tokens", "2")
    assert answer.exit_code == 0, answer.output


def test_the_command_says_what_is_wrong(small_world: Path, tmp_path: Path) -> None:
    result = aligner("merge", small_world / "model", "-o", tmp_path / "merged")
    assert result.exit_code == UsageError.exit_code
    assert "there is nothing to merge" in result.stderr
