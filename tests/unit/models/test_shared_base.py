"""Models on the base of a policy: their numbers are those of models of their own, and nothing of
the policy is written to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, save_lora_reward_model, save_model
from safetensors.torch import load_file, save_file

from aligner.config.recipe import Lora, Model
from aligner.models.ema import trained_weights
from aligner.models.loading import load_policy
from aligner.models.shared_base import SharedBase, offers, sharing_frozen
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer

PROMPTS = ["sort: hgf", "sort: abba and more of it", "x"]
ANSWERS = ["fgh", "aabb", "a longer answer than the others"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(tmp_path / "model")
    return tmp_path / "model"


def policy_on(base: Path, lora: dict[str, Any] | None = None, **more: Any) -> tuple[Any, Model]:
    section = Model(name_or_path=str(base), lora=Lora(r=2, **(lora or {})), **more)
    return load_policy(section, load_tokenizer(section), trainable=True), section


def offered(policy: Any, section: Model, spec: str) -> tuple[Any, SharedBase]:
    with offers(policy, section) as found:
        return load_scorer(spec), found


def scores(scorer: Any) -> list[float]:
    return list(scorer.score(PROMPTS, ANSWERS))


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("kind", ["bradley_terry", "segment"])
def test_numbers_are_those_of_a_model_of_its_own(
    base: Path, tmp_path: Path, kind: str, quantization: str
) -> None:
    spec = save_lora_reward_model(tmp_path / "reward", base, kind, quantization)
    policy, section = policy_on(base, quantization=quantization)
    for weight in trained_weights(policy).values():
        torch.nn.init.normal_(weight)  # as trained further: it must not be seen
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    scorer, found = offered(policy, section, str(spec))
    assert (len(found.shared), found.separate) == (1, {})
    apart = load_scorer(str(spec))
    assert scores(scorer) == pytest.approx(scores(apart), abs=1e-5)
    assert len(set(scores(apart))) > 1
    assert scorer.fingerprint() == apart.fingerprint()
    for name, weight in policy.named_parameters():
        assert weight.equal(before[name]), name
    held = {id(weight) for weight in policy.parameters()}
    own = [name for name, weight in scorer.model.named_parameters() if id(weight) not in held]
    assert own
    assert all("lora_" in name or ".score." in name for name in own)
    assert all(weight.requires_grad for weight in trained_weights(policy).values())
    assert not trained_weights(scorer.model)


def test_the_policy_is_trained_as_if_there_were_no_other(base: Path, tmp_path: Path) -> None:
    spec = save_lora_reward_model(tmp_path / "reward", base, "bradley_terry")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    grads = []
    for shares in (False, True):
        torch.manual_seed(0)
        policy, section = policy_on(base)
        loss = policy(input_ids=ids, labels=ids).loss
        if shares:  # between forward and backward: nothing is switched
            scorer, _ = offered(policy, section, str(spec))
            scores(scorer)
        loss.backward()
        grads.append({name: weight.grad for name, weight in trained_weights(policy).items()})
    for name, grad in grads[0].items():
        assert grad.equal(grads[1][name]), name
        assert "lora_B" not in name or float(grad.abs().max()) > 0.0


def test_the_base_is_known_by_its_content(base: Path, tmp_path: Path) -> None:
    spec = save_lora_reward_model(tmp_path / "reward", base, "bradley_terry")
    shutil.copytree(base, tmp_path / "elsewhere")
    policy, section = policy_on(tmp_path / "elsewhere")
    scorer, found = offered(policy, section, str(spec))
    assert found.shared
    assert scores(scorer) == pytest.approx(scores(load_scorer(str(spec))), abs=1e-5)


def test_what_is_trained_whole_beside_an_adapter_is_not_shared(base: Path, tmp_path: Path) -> None:
    spec = save_lora_reward_model(tmp_path / "reward", base, "bradley_terry")
    policy, section = policy_on(base, {"modules_to_save": ["lm_head", "embed_tokens"]})
    for weight in trained_weights(policy).values():
        torch.nn.init.normal_(weight)
    scorer, found = offered(policy, section, str(spec))
    assert found.shared
    assert scores(scorer) == pytest.approx(scores(load_scorer(str(spec))), abs=1e-5)


def test_the_reference_of_segments_stands_on_it_too(base: Path, tmp_path: Path) -> None:
    card = f"segments: {{rule: entropy, cutoff: 2.0, reference: {base}}}\n"
    spec = save_lora_reward_model(tmp_path / "reward", base, "segment", card=card)
    policy, section = policy_on(base)
    scorer, found = offered(policy, section, str(spec))
    assert found.shared == [str(spec), str(base)]
    one, other = (model.values(PROMPTS, ANSWERS)[0] for model in (scorer, load_scorer(str(spec))))
    assert [valued.ends for valued in one] == [valued.ends for valued in other]
    assert {id(w) for w in scorer.reference.parameters()} <= {id(w) for w in policy.parameters()}


def test_a_member_of_an_ensemble_stands_on_it(base: Path, tmp_path: Path) -> None:
    members = []
    for seed in (0, 1):
        folder = tmp_path / f"reward-{seed}"
        members.append(str(save_lora_reward_model(folder, base, "bradley_terry", seed=seed)))
    card = tmp_path / "both.yaml"
    card.write_text(f"kind: ensemble\nmembers: {json.dumps(members)}\n")
    policy, section = policy_on(base)
    scorer, found = offered(policy, section, str(card))
    assert found.shared == members
    # An ensemble divides by the spread of a member's scores, which is small here: it makes ten or
    # twenty times as much of the rounding, and that is another on each kind of processor.
    assert scores(scorer) == pytest.approx(scores(load_scorer(str(card))), abs=1e-4)


# --- what is loaded whole -------------------------------------------------------------------------


def test_a_policy_that_is_trained_whole_offers_nothing(base: Path, tmp_path: Path) -> None:
    spec = save_lora_reward_model(tmp_path / "reward", base, "bradley_terry")
    section = Model(name_or_path=str(base))
    policy = load_policy(section, load_tokenizer(section), trainable=True)
    scorer, found = offered(policy, section, str(spec))
    assert not found.shared
    assert not {id(w) for w in scorer.model.parameters()} & {id(w) for w in policy.parameters()}


def with_other_weights(folder: Path, base: Path) -> None:
    save_model(base.parent / "other", seed=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base.parent / "other")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def with_weights_of_the_base(folder: Path, base: Path) -> None:
    file = folder / "adapter_model.safetensors"
    norm = "base_model.model.model.norm.weight"
    save_file({**load_file(file), norm: torch.full((32,), 3.0)}, file)


def in_bfloat16(folder: Path, base: Path) -> None:
    card = folder / "reward_model.yaml"
    card.write_text(card.read_text().replace("float32", "bfloat16"))


def with_a_token_more(folder: Path, base: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)


def started_from_the_base(folder: Path, base: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["init_lora_weights"] = "pissa"
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.filterwarnings("ignore:.*holds 1 weight of the base")
@pytest.mark.parametrize(
    ("change", "lora", "why"),
    [
        (with_other_weights, {}, "stands on other weights"),
        (with_weights_of_the_base, {}, "its adapter is saved with weights of the base"),
        (in_bfloat16, {}, "data type"),
        (with_a_token_more, {}, "tokens were added"),
        (started_from_the_base, {}, "its adapter changes weights"),
        (None, {"init_lora_weights": "pissa"}, "the policy's adapter changes weights"),
        (None, {"bias": "all"}, "the policy's adapter changes weights"),
    ],
)
def test_what_would_be_wrong_on_it_is_loaded_whole(
    base: Path, tmp_path: Path, change: Any, lora: dict[str, Any], why: str
) -> None:
    spec = save_lora_reward_model(tmp_path / "reward", base, "bradley_terry")
    if change is not None:
        change(spec, base)
    policy, section = policy_on(base, lora)
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    scorer, found = offered(policy, section, str(spec))
    assert not found.shared
    assert why in found.separate[str(spec)]
    assert all(weight.equal(before[name]) for name, weight in policy.named_parameters())
    assert scores(scorer) == scores(load_scorer(str(spec)))
    assert not {id(w) for w in scorer.model.parameters()} & {id(w) for w in policy.parameters()}


def test_weights_in_8_bits_are_held_once_after_they_were_used(base: Path) -> None:
    """bitsandbytes moves them into a state at the first forward pass."""
    policy, _ = policy_on(base, quantization="int8")
    policy(input_ids=torch.tensor([[5, 6, 7]]))
    copied = sharing_frozen(policy)
    states = [
        (one.state, other.state)
        for one, other in zip(policy.modules(), copied.modules())
        if hasattr(one, "state") and hasattr(one, "weight")
    ]
    assert states
    for one, other in states:
        assert one.CB is not None
        assert one.CB.data_ptr() == other.CB.data_ptr()
