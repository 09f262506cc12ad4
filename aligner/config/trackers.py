"""Which trackers a recipe without `trainer:` may name, as the type of its `report_to`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

Tracker = Literal["all", "mlflow", "none", "tensorboard", "trackio", "wandb"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Trackers = Annotated[
    list[Tracker], BeforeValidator(_as_list, json_schema_input_type=Tracker | list[Tracker])
]
"""One word or several."""
