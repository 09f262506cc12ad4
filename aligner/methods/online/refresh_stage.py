"""The stage in which the proxy is trained on the oracle's labels, as an ordinary run of `aligner
reward` in `refresh/run`.

    pairs.jsonl   the labels that are trained on
    run/          the training; its result is the proxy that scores from then on

A share of each round's labels is held out (`online.oracle.refresh.held_out`), by chance alone and
for ever: on those of all rounds the original proxy, the one that is replaced and the new one are
measured. Without a label there is nothing to train on, and the proxy stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aligner.acquisition.picks import draw
from aligner.config.recipe import Data, Model, Report, Source, TrainRecipe
from aligner.events import OnEvent, StageStarted, Warned, tell
from aligner.methods.online.measures import proxy_accuracy
from aligner.methods.online.pair_stage import PAIRS, as_answer
from aligner.methods.online.query_stage import Row
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.online.train_stage import given_trainer, origins_of
from aligner.methods.reward.recipe import Reward, RewardRecipe
from aligner.methods.stage_run import RUN, carry_out
from aligner.reward_models.batching import Answers, ask, chunks
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.runs.files import json_line, write_atomically
from aligner.runs.stages import Stage

OF_POLICY = ("learning_rate", "num_train_epochs", "max_steps")
"""Settings of `trainer` that are those of the policy alone."""


@dataclass(frozen=True)
class Compared:
    """The scorers that a refresh compares, by their names: `start` is trained, `before` was asked
    last, `original` is that of the recipe."""

    start: str
    before: str
    original: str


def parted(labels: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return which labels of a round are trained on, and which are held out: at least one where
    there are two and some are asked for. Ties and pairs without a label are neither."""
    usable = [row for row in labels if row["label"] in ("a", "b")]
    count = round(share * len(usable))
    if share > 0.0 and len(usable) > 1:
        count = min(max(1, count), len(usable) - 1)
    drawn = sorted(usable, key=lambda row: draw(seed, "held out", row["id"]))
    return drawn[count:], drawn[:count]


def refresh(
    stage: Stage,
    recipe: OnlineRecipe,
    origins: dict[str, str],
    rounds: Sequence[Sequence[Row]],
    proxies: Compared,
    on_event: OnEvent | None,
) -> None:
    """Train on the labels of some rounds, the last one of which is new, and finish the stage."""
    if stage.is_done:
        return
    oracle = recipe.online.oracle
    assert oracle is not None, "the recipe asks for it"
    parts = [parted(labels, oracle.refresh.held_out, recipe.seed) for labels in rounds]
    trained = [row for rows, _ in parts for row in rows]
    if oracle.refresh.start == "previous":
        trained = parts[-1][0]
    held_out = [row for _, rows in parts for row in rows]
    facts: dict[str, Any] = {"trained on": len(trained), "held out": len(held_out)}
    if not trained:
        tell(on_event, Warned(f"{stage.name} has no label to train on: the proxy stays as it is"))
        stage.finish({**facts, "accuracy": {}}, [])
        return
    pairs = stage.folder / PAIRS
    write_atomically(pairs, "".join(map(_preference, trained)))
    inner = recipe_of(stage, recipe, origins, proxies.start)
    results, kept = carry_out(stage, inner, origins_of(inner), on_event)
    after = str(stage.folder / RUN)
    names = {"original": proxies.original, "before": proxies.before, "after": after}
    facts["accuracy"] = _accuracies(names, held_out, on_event)
    stage.finish({**facts, "training": dict(results)}, [pairs, *kept])


def _preference(row: Row) -> str:
    sides = (row["a"], row["b"]) if row["label"] == "a" else (row["b"], row["a"])
    chosen, rejected = (as_answer(row["prompt"], text) for text in sides)
    return json_line({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})


def recipe_of(
    stage: Stage, recipe: OnlineRecipe, origins: dict[str, str], start: str
) -> TrainRecipe:
    """Return the recipe of the stage's own run."""
    assert recipe.online.oracle is not None, "the recipe asks for it"
    settings = recipe.online.oracle.refresh
    trainer = given_trainer(recipe, origins)
    for key in OF_POLICY:
        trainer.pop(key, None)
    trainer["learning_rate"] = settings.learning_rate
    trainer["num_train_epochs"] = settings.num_train_epochs
    if settings.per_device_train_batch_size is not None:
        trainer["per_device_train_batch_size"] = settings.per_device_train_batch_size
    return RewardRecipe(
        method="reward",
        output_dir=str(stage.folder / RUN),
        seed=recipe.seed,
        model=section_of(start, recipe),
        data=Data(
            train=[Source(path=str(stage.folder / PAIRS))], max_length=recipe.data.max_length
        ),
        reward=Reward(
            label_smoothing=settings.label_smoothing,
            center_rewards_coefficient=settings.center_rewards_coefficient,
        ),
        preference=recipe.preference,
        trainer=trainer,
        launch=recipe.launch,
        report=Report(num_prompts=0),
    )


def section_of(spec: str, recipe: OnlineRecipe) -> Model:
    """Return the model of a proxy, to be trained."""
    card, oracle = read_spec(spec), recipe.online.oracle
    assert card.model is not None, "it was checked"
    assert oracle is not None, "the recipe asks for it"
    return Model(
        name_or_path=card.model,
        revision=card.revision,
        dtype=recipe.model.dtype,
        quantization=card.quantization if oracle.refresh.lora is not None else "none",
        double_quant=card.double_quant,
        lora=oracle.refresh.lora,
        attn_implementation=card.attn_implementation,
        trust_remote_code=card.trust_remote_code,
        chat_template=card.chat_template,
        pad_token=card.pad_token,
    )


def _accuracies(
    names: dict[str, str], pairs: Sequence[Row], on_event: OnEvent | None
) -> dict[str, float | None]:
    """How often each proxy orders the two responses of a pair as the oracle does."""
    tell(on_event, StageStarted("measuring the proxies on held-out labels"))
    found: dict[str, float | None] = {}
    by_spec: dict[str, float | None] = {}
    for name, spec in names.items():
        if spec not in by_spec:
            by_spec[spec] = _accuracy(spec, pairs) if pairs else None
        found[name] = by_spec[spec]
    return found


def _accuracy(spec: str, pairs: Sequence[Row]) -> float | None:
    twice = [row for row in pairs for _ in range(2)]
    texts = [row[side] for row in pairs for side in ("a", "b")]
    origins = [row["origin"] for row in twice]
    answers = Answers([row["prompt"] for row in twice], texts, [None] * len(twice), origins)
    scorer = load_scorer(spec)
    verdicts = ask(lambda: scorer, answers, chunks(len(twice), None), keep_silent=True)
    scores = list(zip(*[iter(verdicts.values)] * 2, strict=True))
    gold = [(1.0, 0.0) if row["label"] == "a" else (0.0, 1.0) for row in pairs]
    return proxy_accuracy(scores, gold)[0]
