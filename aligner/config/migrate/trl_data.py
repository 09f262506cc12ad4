"""How TRL and alignment-handbook name rows: one dataset, or a mixture of them."""

from __future__ import annotations

from typing import Any

from aligner.config.migrate.common import settle_evaluation
from aligner.config.migrate.migration import Migration, Note
from aligner.config.migrate.rows import hold_out, source

_OLD_SCRIPTS = (
    "scripts of that time took the first rows of a share, put an empty system turn before rows "
    "without one, and left out what they found of HumanEval; here a share is drawn, and rows stay "
    "as they are"
)


def place_data(migration: Migration, tool: str) -> None:
    """Place sources, and what is held out."""
    old = migration.old
    if mixture := old.get("dataset_mixture"):
        _mixture(migration, mixture)
    elif old.get("dataset_mixer"):
        _mixer(migration)
    elif old.get("datasets"):
        _datasets(migration)
    elif old.get("dataset_name"):
        _one(migration)
    settle_evaluation(migration)


def _evaluates(migration: Migration) -> bool:
    old = migration.old
    strategy = old.get("eval_strategy", old.get("evaluation_strategy"))
    return bool(old.get("do_eval", False)) or strategy not in (None, "no", False)


def _named(migration: Migration, given: dict[str, Any]) -> dict[str, Any]:
    field = migration.old.get("dataset_text_field") or migration.old.get("text_column")
    if field and field != "text":
        return {**given, "columns": {"text": field}}
    return given


def _one(migration: Migration) -> None:
    old = migration.old
    path, subset = str(old["dataset_name"]), old.get("dataset_config")
    split = old.get("dataset_train_split")
    found = _named(migration, source(path, subset=subset, split=split))
    migration.rename("dataset_name", "data.train", [found])
    if _evaluates(migration):
        held_out = old.get("dataset_test_split") or "test"
        found = _named(migration, source(path, subset=subset, split=held_out))
        migration.rename("dataset_test_split", "data.eval", [found])


def _mixture(migration: Migration, mixture: dict[str, Any]) -> None:
    sources = []
    for item in mixture.get("datasets") or []:
        weight = item.get("weight")
        if weight == 0:
            text = "no row of such a source is taken"
            migration.notes.append(
                Note("needless", f"dataset_mixture.weight: 0 of {item['id']}", "", text)
            )
            continue
        found = source(str(item["id"]), subset=item.get("config"), split=item.get("split"))
        sources.append(_named(migration, _weighted(found, weight)))
    migration.rename("dataset_mixture", "data.train", sources)
    _hold_out(migration, "dataset_mixture.test_split_size", mixture.get("test_split_size"))


def _datasets(migration: Migration) -> None:
    sources = []
    for item in migration.old["datasets"]:
        path = item.get("data_files") or item["path"]
        sources.append(source(str(path), subset=item.get("name"), split=item.get("split")))
        if item.get("fraction") is not None:
            text = "a share of the mixture there; `weight` is a share of the source's own rows"
            migration.lose("datasets.fraction", text, item["fraction"])
    migration.rename("datasets", "data.train", sources)
    _hold_out(migration, "test_split_size", migration.old.get("test_split_size"))


def _hold_out(migration: Migration, key: str, size: Any) -> None:
    if _evaluates(migration):
        hold_out(migration, key, size)
    elif size:
        text = "nothing is evaluated, so all rows are trained on"
        migration.notes.append(Note("changed", f"{key}: {size}", "", text))


def _weighted(found: dict[str, Any], weight: Any) -> dict[str, Any]:
    return found if weight in (None, 1) else {**found, "weight": weight}


def _mixer(migration: Migration) -> None:
    old = migration.old
    mixer = old["dataset_mixer"]
    splits = old.get("dataset_splits") or ["train", "test"]
    configs = old.get("dataset_configs") or [None] * len(mixer)
    train, held_out = [], []
    for (path, weight), subset in zip(mixer.items(), configs, strict=False):
        for split in splits:
            if "test" in split:
                held_out.append(_named(migration, source(path, subset=subset, split=split)))
            else:
                found = source(path, subset=subset, split=split)
                train.append(_named(migration, _weighted(found, weight)))
    migration.rename("dataset_mixer", "data.train", train)
    migration.notes.append(migration.said("changed", "dataset_mixer", "data.train", _OLD_SCRIPTS))
    if held_out and _evaluates(migration):
        migration.rename("dataset_splits", "data.eval", held_out)
