"""Was a model trained on the files that it is measured with, as far as its run directory tells?"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from aligner.reward_models.card import Card
from aligner.reward_models.catalogue import members_of


def trained_on(card: Card, digests: Collection[str]) -> list[str]:
    """Return the training files of a reward model, or of an ensemble's members, whose SHA-256 is
    among `digests`.

    What its own training read counts, not that of the model it started from; a model without a run
    directory has none.
    """
    found = [path for member in members_of(card) for path in trained_on(member, digests)]
    if card.model is None:
        return found
    folder = Path(card.model).expanduser().resolve()
    for manifest in (folder / "manifest.json", folder.parent / "manifest.json"):
        try:
            parents = json.loads(manifest.read_text(encoding="utf-8"))["parents"]
            data = [parent for parent in parents if parent["kind"] == "data"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no manifest of ours
        found += [parent["path"] for parent in data if parent.get("fingerprint") in digests]
    return list(dict.fromkeys(found))
