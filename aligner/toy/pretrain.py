"""Pretraining of the toy world's base model: a tiny Llama that knows the tasks and has bad habits.

First it learns from right answers only, which is quickest; then, towards the end, from a mixture in
which an answer is right with probability `CLEAN_SHARE` and otherwise a refusal, chatter or a slip.
So the base knows the tasks in part, and, sampled at temperature 1, answers about as badly as its
last teachers did: that is the room which alignment uses. The loop is plain on purpose (warm-up and
decay, loss on answers only) and exact: the same seed gives the same weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from aligner.models.forward import pad
from aligner.toy.muon import Muon
from aligner.toy.tasks import corrupt, draw
from aligner.toy.tokenizer import MODEL_MAX_LENGTH

STEPS = 600
BATCH_SIZE = 16
MATRIX_LEARNING_RATE = 0.02
OTHER_LEARNING_RATE = 3e-3
WARMUP_STEPS = 20
CLEAN_STEPS_SHARE = 0.85
CLEAN_SHARE = 0.45
TWO_TURNS_SHARE = 0.15
INITIALIZER_RANGE = 0.06
"""Three times the usual, since the model is narrow: with 0.02 it sees no prompt for the first 300
steps."""
ROPE_THETA = 100.0
"""Rows are tens of tokens long, so slower rotations than this would tell positions apart by
nothing."""
IGNORED = -100
_BATCHES_SORTED_TOGETHER = 32

OnProgress = Callable[[float, str], None]


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama of about 0.5 million parameters, randomly initialized."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MODEL_MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    held_out: Collection[str] = (),
    steps: int = STEPS,
    on_progress: OnProgress | None = None,
) -> None:
    """Train `model` in place on `steps` batches of the mixture; prompts in `held_out` are never
    drawn."""
    optimizers = _optimizers(model)
    warmup = min(WARMUP_STEPS, max(1, steps // 2))

    def factor(step: int) -> float:
        return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    model.train()
    clean_steps = int(steps * CLEAN_STEPS_SHARE)
    clean = islice(batches(tokenizer, f"clean {seed}", held_out, clean_share=1.0), clean_steps)
    mixed = islice(
        batches(tokenizer, f"mixed {seed}", held_out, clean_share=CLEAN_SHARE), steps - clean_steps
    )
    for step, (ids, labels) in enumerate(chain(clean, mixed)):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        if on_progress is not None and (step % 5 == 4 or step + 1 == steps):
            on_progress(
                (step + 1) / steps,
                f"pretraining: step {step + 1} of {steps}, loss {loss.item():.2f}",
            )
    model.eval()


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    adamw = torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=MATRIX_LEARNING_RATE), adamw]


def batches(
    tokenizer: PreTrainedTokenizerBase, seed: str, held_out: Collection[str], clean_share: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (ids, labels), padded on the right; rows of like length stand together."""
    rng = random.Random(seed)
    while True:
        talks = [
            _conversation(rng, held_out, clean_share)
            for _ in range(BATCH_SIZE * _BATCHES_SORTED_TOGETHER)
        ]
        encoded = tokenizer.apply_chat_template(
            talks, return_dict=True, return_assistant_tokens_mask=True
        )
        rows = sorted(
            zip(encoded["input_ids"], encoded["assistant_masks"]), key=lambda row: len(row[0])
        )
        starts = list(range(0, len(rows), BATCH_SIZE))
        rng.shuffle(starts)
        for start in starts:
            ids, masks = zip(*rows[start : start + BATCH_SIZE])
            inputs = pad(ids, tokenizer.pad_token_id)["input_ids"]
            yield inputs, inputs.masked_fill(pad(masks, 0)["input_ids"] == 0, IGNORED)


def _conversation(
    rng: random.Random, held_out: Collection[str], clean_share: float
) -> list[dict[str, str]]:
    messages = []
    for _ in range(2 if rng.random() < TWO_TURNS_SHARE else 1):
        while (exercise := draw(rng)).prompt in held_out:
            pass
        answer = exercise.answer if rng.random() < clean_share else corrupt(exercise, rng)
        messages += [
            {"role": "user", "content": exercise.prompt},
            {"role": "assistant", "content": answer},
        ]
    return messages
