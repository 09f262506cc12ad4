"""Self-tests of the arithmetic that training relies on, on a random Llama with two layers.

Every one compares two ways to the same numbers and returns the largest difference. They exist
because each of these has been silently wrong in a released library: packed rows that see each other
(an all-ones mask or a cache is enough), accumulation that is not the large batch, padding that
shifts positions, a reference that is not the policy it started from, an adapter that is merged into
a matrix which is also the head. A test that passes says so for this machine and these versions.

Those here take the model's forward pass alone and are quick; `quantized.py` holds those of 4 and 8
bits, `trainings.py` those that train, and `proofs.py` runs all of them.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aligner.config.recipe import Lora, Model
from aligner.models import adapters, row_sharing
from aligner.models import shared_prefix as shared
from aligner.models.answers import pad_answers
from aligner.models.forward import pad

VOCABULARY = 61
LENGTHS = (11, 7, 13, 5, 9, 12, 3, 8)
TOLERANCE = 1e-4  # float32, values of the order of one; a real fault shows as 0.1 or more
ROUGH_TOLERANCE = 2e-2  # GPUs may multiply float32 in fewer bits
LONGEST_ERROR = 200


@dataclass(frozen=True, slots=True)
class Measured:
    """What a self-test found: the largest difference, and how large it may be.

    `error`: why the test could not be carried out; the difference is NaN then.
    """

    name: str
    claim: str
    difference: float
    tolerance: float
    seconds: float = 0.0
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether the two ways agree. A difference that is not a number does not."""
        return self.difference <= self.tolerance


Test = Callable[[str], float]
"""Device -> the largest difference that was found on it."""


def random_llama(device: str, **settings: Any) -> Any:
    """Return a random model in float32, the same every time, leaving the global random state
    alone. `settings` go into its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    config = LlamaConfig(**shape | settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(device).eval()


def random_rows() -> list[Tensor]:
    """Return rows of token ids (T,) of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


@torch.no_grad()
def packing(device: str) -> float:
    """Rows packed behind one another, as the trainer's collator does, against each alone. No mask
    and no cache: either lets rows see each other."""
    model, rows = random_llama(device), random_rows()
    packed = row_sharing.packed([row.tolist() for row in rows]).inputs
    given = {name: _to(value, device) for name, value in packed.items()}
    together = model(**given, use_cache=False).logits[0].split(LENGTHS)
    return max(_gap(part, alone(model, row, device)) for part, row in zip(together, rows))


@torch.no_grad()
def shared_prefix(device: str) -> float:
    """Pairs of answers whose prompt is computed once, against each answer behind a prompt of its
    own."""
    model, (prompt, *answers) = random_llama(device), random_rows()
    branches = [torch.cat([prompt, answer]).tolist() for answer in answers[:6]]
    groups = [branches[start : start + 2] for start in (0, 2, 4)]
    rows = shared.lay_out(groups, pad_token_id=0)
    mask = shared.attention_of(model, rows.groups.to(device), rows.branches.to(device))
    logits_NV = model(
        input_ids=rows.input_ids.to(device),
        position_ids=rows.position_ids.to(device),
        attention_mask=mask,
        use_cache=False,
    ).logits.flatten(0, 1)
    apart = [alone(model, torch.tensor(ids), device) for ids in branches]
    return max(_gap(logits_NV[places], own) for places, own in zip(rows.places, apart))


@torch.no_grad()
def padding(device: str) -> float:
    """A batch padded on the right, and one padded on the left with a mask, against each row
    alone."""
    model, rows = random_llama(device), random_rows()
    worst = 0.0
    for left in (False, True):
        padded = pad([row.tolist() for row in rows], 0, left=left)
        batch = {name: value.to(device) for name, value in padded.items()}
        together = model(**batch, use_cache=False).logits
        for row, logits_TV in zip(rows, together):
            part = logits_TV[-len(row) :] if left else logits_TV[: len(row)]
            worst = max(worst, _gap(part, alone(model, row, device)))
    return worst


def accumulation(device: str) -> float:
    """Gradient of one batch of 8 against 4 batches of 2, each divided by the tokens of the whole
    step."""
    rows = random_rows()
    large, small = (_gradient(rows, size, device) for size in (8, 2))
    return max(_gap(a, b) for a, b in zip(large, small))


@torch.no_grad()
def reference(device: str) -> float:
    """A policy with a fresh adapter against itself with the adapter off: the reference of a
    preference objective."""
    from aligner.toy.tokenizer import build_tokenizer

    row = random_rows()[0]
    policy = adapters.with_new_adapter(
        random_llama(device), Lora(r=4), Model(name_or_path="random"), build_tokenizer()
    ).eval()
    before = alone(policy, row, device)
    with policy.disable_adapter():
        return _gap(before, alone(policy, row, device))


@torch.no_grad()
def merged(device: str) -> float:
    """An adapter on its base against the two merged, written, and read by transformers alone.

    Embeddings and head share a matrix, and one of them is adapted: merged into a shared matrix, it
    would change the other.
    """
    from aligner.models.read_back import read_back

    model, rows = random_llama(device, tie_word_embeddings=True), random_rows()
    adapted = random_adapter(model, ["embed_tokens", "q_proj", "v_proj", "down_proj"]).eval()
    expected = _all_alone(adapted, rows, device)
    whole = adapters.merge_adapter(adapted)
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        again = read_back(folder).to(device)
    found = (_all_alone(one, rows, device) for one in (whole, again))
    return max(_gap(one, expected) for one in found)


def stop_token(_device: str) -> float:
    """Share of assistant turns whose stop token is not trained, in a small conversation."""
    from aligner.data.rows import ConversationRow
    from aligner.tokenization.encode import IGNORED, encode_sft, stop_token_ids
    from aligner.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    turns = [{"role": role, "content": "word"} for role in ("user", "assistant") * 2]
    labels = encode_sft(tokenizer, ConversationRow(turns)).labels
    trained = sum(label in stop_token_ids(tokenizer) for label in labels if label != IGNORED)
    return 1.0 - trained / 2


TESTS: dict[str, tuple[str, Test]] = {
    "packing": ("a packed row does not see its neighbours", packing),
    "shared prefix": (
        "answers that share a prompt give the numbers of separate rows",
        shared_prefix,
    ),
    "padding": ("a padded row gives the numbers of the row alone", padding),
    "accumulation": ("4 batches of 2 give the gradient of 1 batch of 8", accumulation),
    "reference": ("policy and reference agree before the first step", reference),
    "stop token": ("the token that ends an answer is trained", stop_token),
    "merged": ("a merged model is its adapter on its base", merged),
}
"""Name -> what it claims, and the test."""


def measured(name: str, claim: str, test: Test, device: str, tolerance: float) -> Measured:
    """Run a self-test on a device, and take its time. A failure to run is its result.

    Whatever a library raises is a finding here: a test is there to show what is broken.
    """
    began = time.perf_counter()
    try:
        difference, error = test(device), ""
    except Exception as raised:
        lines = str(raised).strip().splitlines() or [type(raised).__name__]
        difference, error = math.nan, lines[0][:LONGEST_ERROR]
    return Measured(name, claim, difference, tolerance, time.perf_counter() - began, error)


def measure(device: str) -> list[Measured]:
    """Run every self-test of this module on a device."""
    tolerance = TOLERANCE if device == "cpu" else ROUGH_TOLERANCE
    return [measured(name, claim, test, device, tolerance) for name, (claim, test) in TESTS.items()]


def alone(model: Any, row_T: Tensor, device: str) -> Tensor:
    """Return the logits (T, V) of a row that is read by itself."""
    return model(input_ids=row_T[None].to(device), use_cache=False).logits[0]


def _gradient(rows: list[Tensor], batch_size: int, device: str) -> list[Tensor]:
    model = random_llama(device)
    predicted = sum(len(row) - 1 for row in rows)
    for start in range(0, len(rows), batch_size):
        part = [((), row.tolist()) for row in rows[start : start + batch_size]]
        batch = {name: value.to(device) for name, value in pad_answers(part, 0).items()}
        model(**batch, num_items_in_batch=predicted).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def _all_alone(model: Any, rows: list[Tensor], device: str) -> Tensor:
    return torch.cat([alone(model, row_T, device) for row_T in rows])


def random_adapter(model: Any, targets: str | list[str] = "all-linear") -> Any:
    """Put an adapter onto a model that changes what it says, the same every time."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), adapters.told_of_ties():
        torch.manual_seed(2)
        return get_peft_model(model, config)


def _to(value: Any, device: str) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())
