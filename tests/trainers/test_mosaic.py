"""`aligner sft` on mosaics: what is trained, how it is counted, and that it is what the files
hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from fakes import small_recipe

from aligner import events
from aligner.builders.mosaic.build import run_mosaic
from aligner.builders.mosaic.engine import Counts
from aligner.builders.mosaic.epochs import mosaics_of
from aligner.builders.mosaic.iterable import MosaicIterable
from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Mosaic, Source
from aligner.config.shipped import recipe_text
from aligner.data.loading import load_rows
from aligner.errors import DataError, RecipeError
from aligner.methods.pipeline import run_recipe
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.files import read_metrics
from aligner.tokenization.encode import IGNORED, encode_sft
from aligner.training.sampler import SeededSampler

MOSAIC = {"max_examples": 3}


def trained(world: Path, output: Path, *overrides: str, **flags: Any) -> Path:
    settings = {"data__mosaic": MOSAIC, "data__max_length": 400, "trainer__max_steps": -1, **flags}
    return run_recipe(small_recipe("sft", world, output, *overrides, **settings)).run_dir


def test_each_epoch_trains_on_the_mosaics_that_the_files_hold(
    small_world: Path, tmp_path: Path
) -> None:
    run = trained(small_world, tmp_path / "run", trainer__num_train_epochs=2)
    flags = {
        "data.train": str(small_world / "sft.jsonl"),
        "output_dir": str(tmp_path / "files"),
        "data.max_length": 400,
    }
    tokenizer = str(small_world / "model")
    recipe = load_recipe(
        "mosaic",
        None,
        [],
        {**flags, "mosaic.max_examples": 3, "mosaic.epochs": 2, "mosaic.tokenizer": tokenizer},
    )
    files = run_mosaic(recipe).run_dir
    rows = load_rows(Data(train=[Source(path=str(files / "data"))]), "sft", 0).train
    from aligner.config.recipe import Model

    encoded = [encode_sft(load_tokenizer(Model(name_or_path=tokenizer)), row) for row in rows]
    prepared = load_from_disk(str(run / "prepared/train"))
    assert [list(ids) for ids in prepared["input_ids"]] == [one.input_ids for one in encoded]
    assert [list(ids) for ids in prepared["labels"]] == [
        [IGNORED, *one.labels[1:]] for one in encoded
    ]
    steps = [line["step"] for line in read_metrics(run) if line["split"] == "train"]
    assert max(steps) == -(-len(rows) // 4)


def test_the_books_say_what_was_made_of_the_rows(small_world: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    recipe = small_recipe(
        "sft",
        small_world,
        tmp_path / "run",
        data__mosaic=MOSAIC,
        data__max_length=400,
        trainer__max_steps=-1,
        trainer__num_train_epochs=2,
        data__eval=0.25,
    )
    run = run_recipe(recipe, on_event=told.append).run_dir
    split = json.loads((run / "data.json").read_text())["splits"]["train"]
    assert split["rows_in"] == 36
    assert split["rows"] == split["made"]
    lines = dict(next(event.table for event in told if isinstance(event, events.DataReady)))
    assert lines["train mosaics"] == f"{split['made']} samples in 2 epochs over 36 rows"
    assert max(line["epoch"] for line in read_metrics(run)) == 2.0


def test_the_books_say_what_stands_alone(small_world: Path, tmp_path: Path) -> None:
    lines = (small_world / "sft.jsonl").read_text().splitlines()
    thinking = {"role": "assistant", "content": "<think>hm</think>ab"}
    odd = {"messages": [{"role": "user", "content": "sort: ba"}, thinking]}
    (tmp_path / "some.jsonl").write_text("\n".join([*lines[:20], json.dumps(odd)]) + "\n")
    told: list[Any] = []
    recipe = small_recipe(
        "sft",
        small_world,
        tmp_path / "run",
        data__mosaic=MOSAIC,
        data__max_length=400,
        data__train=str(tmp_path / "some.jsonl"),
    )
    run_recipe(recipe, dry_run=True, on_event=told.append)
    books = dict(next(event.table for event in told if isinstance(event, events.DataReady)))
    assert books["train mosaics"].endswith("; always alone: 1 (its answer holds thinking)")


def test_half_an_epoch_ends_in_the_middle_of_its_mosaics(small_world: Path, tmp_path: Path) -> None:
    run = trained(small_world, tmp_path / "run", trainer__num_train_epochs=1.5)
    first, second = json.loads((run / "prepared/batching.json").read_text())["epoch_sizes"]
    assert read_metrics(run)[-1]["step"] == -(-(first + second / 2) // 4)


def test_as_many_epochs_are_made_as_the_steps_take(small_world: Path, tmp_path: Path) -> None:
    run = trained(small_world, tmp_path / "run", trainer__max_steps=23)
    epoch_sizes = json.loads((run / "prepared/batching.json").read_text())["epoch_sizes"]
    assert sum(epoch_sizes[:-1]) < 23 * 4 <= sum(epoch_sizes)
    assert read_metrics(run)[-1]["step"] == 23


def test_mosaics_can_be_packed(small_world: Path, tmp_path: Path) -> None:
    run = trained(small_world, tmp_path / "run", sft__packing=True, trainer__num_train_epochs=2)
    batching = json.loads((run / "prepared/batching.json").read_text())
    assert batching["packing"]
    assert len(load_from_disk(str(run / "prepared/train"))) == sum(batching["epoch_sizes"])


def test_packed_mosaics_are_drawn_anew_too_until_the_steps_are_full(
    small_world: Path, tmp_path: Path
) -> None:
    run = trained(small_world, tmp_path / "run", sft__packing=True, trainer__max_steps=20)
    epoch_sizes = json.loads((run / "prepared/batching.json").read_text())["epoch_sizes"]
    assert len(epoch_sizes) > 2
    assert sum(epoch_sizes[:-1]) < 20 * 4 <= sum(epoch_sizes)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"trainer__num_train_epochs": 0}, "no mosaics would be made"),
        ({"data__mosaic": {"max_tokens": 500}}, "is above `data.max_length`"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_recipe(
    small_world: Path, tmp_path: Path, flags: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        trained(small_world, tmp_path / "run", **flags)


def test_rows_that_stand_alone_and_are_too_long_are_told_as_rows_of_the_file(
    small_world: Path, tmp_path: Path
) -> None:
    """Once for each, with the way out, and not once for each epoch under the name of a sample."""
    lines = (small_world / "sft.jsonl").read_text().splitlines()
    long = {
        "messages": [
            {"role": "user", "content": "sort: ba"},
            {"role": "assistant", "content": "ab" * 400},
        ]
    }
    data = tmp_path / "long.jsonl"
    data.write_text("\n".join([*lines[:20], json.dumps(long)]) + "\n")
    with pytest.raises(
        DataError, match=r"1 of \d+ rows alone are longer than data\.max_length=400"
    ) as caught:
        trained(small_world, tmp_path / "run", data__train=str(data))
    assert [problem.where for problem in caught.value.problems] == [f"{data}:21"]
    assert "data.mosaic.on_overlong=drop" in caught.value.hint
    trained(small_world, tmp_path / "dropped", data__train=str(data), data__on_too_long="drop")
    trained(
        small_world,
        tmp_path / "left",
        data__train=str(data),
        data__mosaic={**MOSAIC, "on_overlong": "drop"},
    )
    trained(
        small_world,
        tmp_path / "theirs",
        data__train=str(data),
        data__mosaic={**MOSAIC, "compat": "released"},
    )


@pytest.mark.parametrize("recipe", ["mosaic", "sft-mosaic"])
def test_the_tiny_recipes_run_in_the_toy_world(
    toy_world: Path, tmp_path: Path, recipe: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(toy_world)
    if recipe == "mosaic":
        run = run_mosaic(
            load_recipe("mosaic", "tiny/mosaic", [f"output_dir={tmp_path / 'run'}"])
        ).run_dir
        assert (run / "data/train.jsonl").is_file()
    else:
        overrides = [
            f"output_dir={tmp_path / 'run'}",
            "trainer.max_steps=2",
            "report.num_prompts=0",
        ]
        run = run_recipe(load_recipe("sft", "tiny/sft-mosaic", overrides)).run_dir
        assert (run / "final/model.safetensors").is_file()


def test_what_the_recipe_says_to_do_next_works(
    toy_world: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    # was wrong once: tiny/sft takes shorter rows than tiny/mosaic makes
    monkeypatch.chdir(toy_world)
    run = run_mosaic(
        load_recipe("mosaic", "tiny/mosaic", [f"output_dir={tmp_path / 'run'}"])
    ).run_dir
    (line,) = re.findall(
        r"^# Next +aligner sft tiny/sft (.+)$", recipe_text("tiny/mosaic"), re.MULTILINE
    )
    overrides = line.replace("runs/mosaic", str(run)).split()
    told: list[Any] = []
    run_recipe(load_recipe("sft", "tiny/sft", overrides), dry_run=True, on_event=told.append)
    assert any(isinstance(event, events.Plan) for event in told)


def test_a_dry_run_counts_the_sequences_of_all_epochs(small_world: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    recipe = small_recipe(
        "sft",
        small_world,
        tmp_path / "run",
        data__mosaic=MOSAIC,
        data__max_length=400,
        trainer__max_steps=-1,
        trainer__num_train_epochs=3,
    )
    run_recipe(recipe, dry_run=True, on_event=told.append)
    plan = {
        what: (value, how)
        for what, value, how in next(event.rows for event in told if isinstance(event, events.Plan))
    }
    total, how = plan["sequences"]
    assert how.startswith("in 3 epochs: ")
    assert sum(int(size) for size in how.removeprefix("in 3 epochs: ").split(", ")) == int(total)
    assert int(plan["steps"][0]) == -(-int(total) // 4)


def test_wrong_phrasings_are_reported_before_the_rows_are_read(
    small_world: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml cannot be read"):
        trained(
            small_world,
            tmp_path / "run",
            data__mosaic={"phrasings": str(tmp_path / "nowhere.yaml")},
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["eval_strategy", "save_strategy", "logging_strategy"])
def test_ends_of_epochs_are_no_moments_in_a_training_on_mosaics(
    small_world: Path, tmp_path: Path, key: str
) -> None:
    with pytest.raises(RecipeError, match=r"cannot be `epoch` with `data\.mosaic`"):
        trained(small_world, tmp_path / "run", data__eval=0.2, **{f"trainer__{key}": "epoch"})


@pytest.mark.parametrize("lengths", [None, list(range(37))])
def test_epochs_come_in_turn_and_every_row_once(lengths: list[int] | None) -> None:
    order = list(SeededSampler(37, 5, lengths=lengths, rows_per_step=4, epoch_sizes=[10, 13, 14]))
    assert sorted(order) == list(range(37))
    # Only what makes no whole step of its own epoch comes with the next one.
    assert all(row < 10 for row in order[:8])
    assert all(row < 23 for row in order[8:20])
    assert all(row >= 10 for row in order[20:])


def test_a_loop_of_ones_own_gets_the_same_mosaics_shared_among_workers_and_ranks(
    small_world: Path,
) -> None:
    from torch.utils.data import DataLoader

    rows = load_rows(Data(train=[Source(path=str(small_world / "sft.jsonl"))]), "sft", 42).train
    mosaics = mosaics_of(rows, Mosaic(max_examples=3), seed=7)
    whole = MosaicIterable(mosaics)
    whole.set_epoch(1)
    samples = list(whole)
    assert [one["prompt"] for one in samples] == [
        sample.row.prompt for sample in mosaics.epoch_samples(1, Counts())
    ]
    shares = [MosaicIterable(mosaics, rank=rank, world_size=3) for rank in range(3)]
    for share in shares:
        share.set_epoch(1)
    given = [list(share) for share in shares]
    assert {len(share) for share in given} == {len(samples) // 3}
    whole_rounds = samples[: len(samples) // 3 * 3]
    assert sorted(map(str, whole_rounds)) == sorted(str(one) for share in given for one in share)
    loaded = list(DataLoader(whole, batch_size=None, num_workers=2))
    assert sorted(map(str, loaded)) == sorted(map(str, samples))
