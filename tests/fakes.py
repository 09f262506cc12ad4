"""Small real things built in code, for every test that needs one: a tokenizer, a model, files of
rows. No network.

`write_small_world()` makes a folder to train in: model, conversations, pairs; `small_recipe()` a
recipe for it. `byte_tokenizer()` has one token for each byte and a ChatML-like template with
generation markers; `tiny_llama()` is a random Llama with two layers that fits it; `save_model()`
writes both where `from_pretrained` finds them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from aligner.config.load import Resolved

PAD, BOS, EOS, START = "<pad>", "<bos>", "<eos>", "<start>"

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<start>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + eos_token -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start>assistant\\n' -}}{%- endif -%}
"""


def byte_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE, *, adds_bos: bool = True
) -> PreTrainedTokenizerFast:
    """One token for each byte. `chat_template=None` makes the tokenizer of a base model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([PAD, BOS, EOS, START, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[START],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_llama(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, **settings: Any
) -> LlamaForCausalLM:
    """A random Llama with two layers and about thirty thousand parameters, the same for the same
    seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**shape, **settings},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def save_model(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write tokenizer and model to a folder, and return the folder."""
    tokenizer = byte_tokenizer()
    tiny_llama(tokenizer, seed, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reward_model(
    folder: Path, outputs: int = 1, seed: int = 0, card: str | None = None
) -> Path:
    """A random sequence classification model with its tokenizer and card."""
    import torch
    from transformers import LlamaForSequenceClassification

    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    config = tiny_llama(tokenizer, seed).config
    config.num_labels = outputs
    config.pad_token_id = tokenizer.pad_token_id
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "reward_model.yaml").write_text(card or "kind: bradley_terry\nmodel: .\n")
    return folder


def save_lora_reward_model(
    folder: Path,
    base: Path,
    kind: str = "bradley_terry",
    quantization: str = "none",
    card: str = "",
    seed: int = 0,
) -> Path:
    """A reward model that is a random adapter and head on a base, with its tokenizer and card.
    `card`: further lines of it; a segment model has segments of two tokens without."""
    import torch

    from aligner.config.recipe import Lora, Model
    from aligner.models.loading import load_reward_model
    from aligner.models.tokenizers import load_tokenizer

    section = Model(name_or_path=str(base), lora=Lora(r=2))
    tokenizer = load_tokenizer(section)
    model = load_reward_model(section, tokenizer, outputs=1, trainable=True, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = 0.3 * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lines = [f"kind: {kind}", "model: .", "dtype: float32", f"quantization: {quantization}"]
    if kind == "segment" and not card:
        card = "segments: {rule: fixed, length: 2}\n"
    (folder / "reward_model.yaml").write_text("\n".join(lines) + f"\n{card}")
    return folder


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write rows, one a line, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def write_small_world(folder: Path, rows: int = 48, seed: int = 0) -> Path:
    """A folder with `model/`, `sft.jsonl`, `pairs.jsonl` and `weighted.jsonl`: letters to be
    sorted, of many lengths."""
    save_model(folder / "model", seed)
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 24))) for _ in range(rows)]
    write_jsonl(folder / "sft.jsonl", (_talk(word) for word in words))
    pairs = [_pair(word, draw) for word in words]
    write_jsonl(folder / "pairs.jsonl", pairs)
    write_jsonl(
        folder / "weighted.jsonl",
        ({**pair, "weight": draw.choice((0.5, 1.0, 3.0))} for pair in pairs),
    )
    return folder


def _talk(word: str) -> dict[str, Any]:
    turns = (("user", f"sort: {word}"), ("assistant", "".join(sorted(word))))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _pair(word: str, draw: random.Random) -> dict[str, Any]:
    question, answer = _talk(word)["messages"]
    wrong = word[::-1] + "z" * draw.randint(1, 6)
    return {
        "prompt": [question],
        "chosen": [answer],
        "rejected": [{"role": "assistant", "content": wrong}],
    }


SMALL = {
    "trainer.learning_rate": 1e-3,
    "trainer.per_device_train_batch_size": 4,
    "trainer.logging_steps": 1,
    "trainer.save_steps": 1000,
    "trainer.max_steps": 4,
    "trainer.report_to": "none",
    "trainer.use_cpu": True,
    "report.num_prompts": 0,
    "data.max_length": 128,
}
"""Settings of a run that takes a second or two; every one can be overridden."""

SMALL_ROLLOUTS = {
    "rlhf.reward_models": ["verifier:regex=[a-m]"],
    "rlhf.group_size": 4,
    "rlhf.max_new_tokens": 8,
}
"""Those of a run that samples."""


SMALL_ROUNDS = {
    "data.eval": 0.2,
    "online.rounds": 2,
    "online.prompts_per_round": 12,
    "online.num_samples": 4,
    "online.max_new_tokens": 12,
    "online.shard_size": 4,
    "online.generation_batch_size": 16,
    "trainer.max_steps": -1,
    "trainer.num_train_epochs": 2,
    "trainer.save_steps": 2,
}
"""Those of a run of rounds."""


def write_rounds_world(folder: Path, toy_world: Path) -> Path:
    """A folder with the model of a toy world, which ends its answers, its prompts, and a random
    reward model, `rm/`, which tells answers apart."""
    shutil.copytree(toy_world / "model", folder / "model")
    shutil.copy(toy_world / "prompts.jsonl", folder)
    save_reward_model(folder / "rm", card=CARD_OF_ROUNDS)
    return folder


CARD_OF_ROUNDS = "kind: bradley_terry\nmodel: .\ndtype: float32\n"


def small_recipe(
    method: str, world: Path, output_dir: Path, *overrides: str, **flags: Any
) -> Resolved:
    """A resolved recipe for a small world. `flags`: dotted keys with `__` for the dot."""
    from aligner.config.load import load_recipe

    data = "pairs.jsonl" if method in ("dpo", "reward") else "sft.jsonl"
    data = "prompts.jsonl" if method == "online" else data
    settings = {
        "model.name_or_path": str(world / "model"),
        "data.train": str(world / data),
        "output_dir": str(output_dir),
        **SMALL,
        **(SMALL_ROLLOUTS if method == "rlhf" else {}),
        **(SMALL_ROUNDS if method == "online" else {}),
        **({"online.reward_models": [str(world / "rm")]} if method == "online" else {}),
        **{key.replace("__", "."): value for key, value in flags.items()},
    }
    given = {override.split("=", 1)[0] for override in overrides}
    return load_recipe(
        method, None, overrides, {key: value for key, value in settings.items() if key not in given}
    )


def prescribe(monkeypatch: pytest.MonkeyPatch, metric: str, values: Iterable[float]) -> None:
    """Let trainers find these values of a metric, the last one ever after, where a processor's
    rounding would decide."""
    from transformers import Trainer

    numbers = list(values)
    log = Trainer.log

    def told(self: Any, logs: dict[str, float], *rest: Any) -> None:
        if metric in logs:
            logs[metric] = numbers.pop(0) if len(numbers) > 1 else numbers[0]
        log(self, logs, *rest)

    monkeypatch.setattr(Trainer, "log", told)
