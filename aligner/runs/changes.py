"""What differs between the recipe that a run was started with and the one that it is resumed with.
Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aligner.config.defaults import is_default
from aligner.config.load import Resolved
from aligner.runs.environment import REDACTED, redact_values, secrets_in
from aligner.runs.files import dumps, flatten

OF_ENDPOINTS = (
    *("budget", "base_url", "api_key_env", "timeout_s", "max_retries", "max_in_flight"),
    *("requests_per_minute", "tokens_per_minute", "record"),
    *(f"usd_per_million_{kind}_tokens" for kind in ("prompt", "completion")),
)
"""Keys of a section that names a language model that decide no reply."""

ENDPOINTS = (
    "endpoint",
    *(f"evolve.{role}" for role in ("optimizer", "answerer", "judge", "checks.pass_rate.target")),
)

TRACKING = ("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id")
"""Keys of `trainer` that say where a run is tracked, and under which name."""

FREE_KEYS = (
    "output_dir",
    "report",
    "report_to",
    *(f"trainer.{key}" for key in TRACKING),
    *(f"launch.{key}" for key in ("machine_rank", "main_process_ip", "main_process_port")),
    *(f"discover.{key}" for key in ("proposals", "minutes", "history", "timeout_minutes")),
    *(f"mosaic.{key}" for key in ("workers", "batch_size")),
    *(f"evolve.{key}" for key in ("rows_in_flight", "batch")),
    *(f"{section}.{key}" for section in ENDPOINTS for key in OF_ENDPOINTS),
)
"""Keys, or sections, that may change when a run is resumed: limits, and what no result depends
on."""


def untracked(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `trainer` that a result may depend on."""
    return {key: value for key, value in trainer.items() if key not in TRACKING}


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith((f"{free}.", f"{free}[")) for free in FREE_KEYS)


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs between two recipes and may change a result: (key, old value, new value). Absent
    is None."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in {**before, **after} if not _is_free(key)]
    pairs = [(key, before.get(key), after.get(key)) for key in keys]
    return [(key, a, b) for key, a, b in pairs if a != b and REDACTED not in str(a)]


def unwritten_defaults(
    changed: Sequence[tuple[str, Any, Any]], before: Mapping[str, str], now: Mapping[str, str]
) -> list[str]:
    """The keys among the changed ones that only one of two recipes has, as a default: other
    versions wrote fewer of them down, or had other ones."""
    return [
        key
        for key, *_ in changed
        if (key not in before and is_default(now.get(key, "")))
        or (key not in now and is_default(before.get(key, "")))
    ]


def changes(
    record: Mapping[str, Any], resolved: Resolved
) -> tuple[list[tuple[str, Any, Any]], list[str]]:
    """Compare a recipe with that of `resolved.json`: what changed, and the defaults that could not
    be compared."""
    changed = changed_keys(record["recipe"], recipe_values(resolved))
    unwritten = unwritten_defaults(changed, record.get("origins", {}), resolved.origins)
    return [change for change in changed if change[0] not in unwritten], unwritten


def recipe_values(resolved: Resolved) -> dict[str, Any]:
    """Return the recipe's values as they stand in `resolved.json`."""
    values: dict[str, Any] = json.loads(dumps(resolved.recipe.model_dump(mode="json")))
    return redact_values(values, secrets_in(values))


def shown(value: Any) -> str:
    """Return a value as a message shows it."""
    return "(absent)" if value is None else dumps(value)
