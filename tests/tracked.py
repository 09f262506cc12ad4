"""Read back what trackers hold of a run, with their own libraries or from their files: (name, step)
-> every value that stands there."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from aligner.runs.files import read_metrics

Points = dict[tuple[str, int], list[float]]


def gathered(points: Iterable[tuple[str, int, float]]) -> Points:
    found: Points = defaultdict(list)
    for name, step, value in points:
        found[name, step].append(value)
    return dict(found)


def logged(run_dir: Path) -> Points:
    """What `metrics.jsonl` says."""
    return gathered(
        (f"{record['split']}/{key}", record["step"], float(value))
        for record in read_metrics(run_dir)
        for key, value in record.items()
        if key not in ("step", "split")
    )


def in_tensorboard(run_dir: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0})
    reader.Reload()
    return gathered(
        (name, point.step, point.value)
        for name in reader.Tags()["scalars"]
        for point in reader.Scalars(name)
    )


def texts_in_tensorboard(run_dir: Path) -> dict[str, list[str]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run_dir / "tensorboard"))
    reader.Reload()
    return {
        name: [point.tensor_proto.string_val[0].decode() for point in reader.Tensors(name)]
        for name in ("recipe", "lineage")
    }


def in_trackio(project: str) -> dict[str, Points]:
    """Points of each run of a project, by the run's name; several of one name are one."""
    from trackio.utils import TRACKIO_DIR

    with sqlite3.connect(TRACKIO_DIR / f"{project}.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    found: dict[str, list[tuple[str, int, float]]] = defaultdict(list)
    for run, step, metrics in rows:
        for name, value in json.loads(metrics).items():
            if not isinstance(value, dict):
                found[run].append((name, step, float(value)))
    return {run: gathered(points) for run, points in found.items()}


def in_mlflow(run_id: str) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient()
    return gathered(
        (name, point.step, point.value)
        for name in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, name)
    )


def in_wandb(run_dir: Path) -> Points:
    """What the offline folders hold, all of them together."""
    from wandb.proto.wandb_internal_pb2 import Record

    points = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for content in _records(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            items = record.history.item
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in items}
            step = record.history.step.num
            points += [
                (name, step, float(json.loads(value)))
                for name, value in values.items()
                if not name.startswith("_")
            ]
    return gathered(points)


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's format for logs, behind its header of seven bytes: blocks
    of 32 KiB, in which each part has a checksum, its length and its kind."""
    at, block, begun = 7, 32 * 1024, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        begun += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield begun
            begun = b""


def differences(points: Points, expected: Points) -> list[str]:
    """What a tracker holds that the record does not say, or lacks; results are another matter."""
    found = []
    mine = {key: values for key, values in points.items() if not key[0].startswith("results/")}
    for key in sorted({*mine, *expected}):
        got, wanted = mine.get(key, []), expected.get(key, [])
        if len(got) != len(wanted) or not all(map(_close, got, wanted)):
            found.append(f"{key}: {got} for {wanted}")
    return found


def _close(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=1e-6)
