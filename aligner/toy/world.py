"""`write_world`: the offline world as a folder, with a model, its data and its recipes.

    model/              the base: tokenizer, chat template, a tiny Llama in safetensors
    sft.jsonl           `messages`: right answers, some of them in conversations of two turns
    preferences.jsonl   `prompt`, `chosen` (right), `rejected` (what the base said where it was
                        wrong, or a slip)
    rated.jsonl         `prompt`, `completion`, `right`, `brief`: both answers of every pair, rated
                        from 0 to 4; some ratings are missing
    prompts.jsonl       `prompt`, `answer`: more prompts, for methods that write their own answers
    heldout.jsonl       the same, to measure on; no prompt of it occurs anywhere else, pretraining
                        included
    heldout-pairs.jsonl `prompt`, `chosen` (right), `rejected` (a slip): pairs on the same
                        prompts, to measure reward models on
    experts-*.jsonl     `prompt`, `response`: what three scripted experts of differing skill say to
                        the prompts of `prompts.jsonl` and `heldout.jsonl`
    recipes/            copies of the recipes in `tiny/`, to be run from inside the folder
    manifest.json       what was written, with fingerprints; last, so its presence means done

The same seed gives the same bytes on the same kind of machine; one thread is used. While it is
being written the folder holds a file `unfinished`; when the writing was killed, the next call sees
that file and starts again. A folder with anything else in it is refused.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aligner
from aligner.errors import UsageError
from aligner.runs.files import dumps, file_sha256, parse_json, share_weights, write_atomically
from aligner.runs.places import refuse_unusable
from aligner.toy.experts import EXPERTS, answers
from aligner.toy.tasks import Exercise, corrupt, draw, gold_score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = {"heldout": 400, "sft": 1000, "preferences": 1200, "prompts": 1000}
TWO_TURNS_SHARE = 0.2
"""Share of the rows of `sft.jsonl` that hold two exercises."""
FROM_BASE_SHARE = 0.5
"""Share of the preference prompts that the base is asked; where it is right, or raves, the rejected
answer is a slip."""
UNRATED_SHARE = 0.25
"""Share of the answers in `rated.jsonl` that nobody has rated for being brief."""
LONGEST_ANSWER_TOKENS = 32
KIND = "aligner toy world"
UNFINISHED = "unfinished"

OnProgress = Callable[[float, str], None]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """Where the parts of a world are; `manifest` is what `manifest.json` says."""

    dir: Path
    manifest: dict[str, Any]

    @property
    def model_dir(self) -> Path:
        return self.dir / "model"

    def data(self, name: str) -> Path:
        """The file of a split: `sft`, `preferences`, `rated`, `prompts` or `heldout`."""
        return self.dir / f"{name}.jsonl"


def write_world(
    directory: str | Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> World:
    """Write the world, in about a minute; `on_progress(share, text)` gets how far it is.

    `steps` shortens the pretraining: with 5 the base knows nothing, and everything else is as it
    should be. Raises: UsageError when the folder holds something; `overwrite` replaces an earlier
    world, runs in it included.
    """
    folder = Path(directory)
    tell = on_progress or (lambda share, text: None)
    refuse_unusable(folder, "DIR")
    _make_room(folder, overwrite)
    splits = draw_splits(seed)
    with _one_thread():
        model, tokenizer, steps = _write_model(
            folder / "model", splits, seed, steps, lambda s, t: tell(0.85 * s, t)
        )
        asked = splits["preferences"][: int(len(splits["preferences"]) * FROM_BASE_SHARE)]
        said = _base_answers(model, tokenizer, asked, seed, lambda s, t: tell(0.85 + 0.14 * s, t))
    _write_rows(folder, splits, said, seed)
    _copy_recipes(folder / "recipes")
    manifest = _manifest(folder, seed, steps, splits, said)
    write_atomically(folder / "manifest.json", dumps(manifest, indent=2) + "\n")
    (folder / UNFINISHED).unlink()
    tell(1.0, "the toy world is ready")
    return World(folder, manifest)


def read_world(directory: str | Path) -> World:
    """A world that is there already; UsageError when the folder holds none."""
    path = Path(directory) / "manifest.json"
    manifest = (
        parse_json(path, f"write the world again: aligner toy {directory}") if path.exists() else {}
    )
    if manifest.get("kind") != KIND:
        raise UsageError(f"{directory} is not a toy world", f"`aligner toy {directory}` writes one")
    return World(Path(directory), manifest)


def draw_splits(seed: int) -> dict[str, list[Exercise]]:
    """The exercises of every split; all prompts are different, within a split and across them."""
    rng = random.Random(f"splits {seed}")
    seen: set[str] = set()
    splits: dict[str, list[Exercise]] = {name: [] for name in ROWS}
    for name, count in ROWS.items():
        while len(splits[name]) < count:
            exercise = draw(rng)
            if exercise.prompt not in seen:
                seen.add(exercise.prompt)
                splits[name].append(exercise)
    return splits


# --- the folder -----------------------------------------------------------------------------------


def _make_room(folder: Path, overwrite: bool) -> None:
    """Leave an empty folder with the file `unfinished`, or refuse."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "choose another folder")
    inside = list(folder.iterdir()) if folder.exists() else []
    if inside and not (folder / UNFINISHED).exists():
        if not overwrite:
            raise UsageError(
                f"{folder} is not empty",
                "choose another folder, or give --overwrite to replace an earlier toy world",
            )
        read_world(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED).touch()
    for path in inside:
        if path.name != UNFINISHED:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _copy_recipes(folder: Path) -> None:
    folder.mkdir()
    shipped = resources.files("aligner.recipes") / "tiny"
    for recipe in sorted(shipped.iterdir(), key=lambda entry: entry.name):
        if recipe.name.endswith((".yaml", ".jsonl")):
            (folder / recipe.name).write_text(
                recipe.read_text(encoding="utf-8"), encoding="utf-8", newline="\n"
            )


def _manifest(
    folder: Path, seed: int, steps: int, splits: dict[str, list[Exercise]], said: list[str]
) -> dict[str, Any]:
    import torch
    import transformers

    scores = [
        gold_score(exercise.prompt, text) for exercise, text in zip(splits["preferences"], said)
    ]
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != UNFINISHED)
    return {
        "kind": KIND,
        "versions": {
            "aligner": aligner.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seed": seed,
        "pretraining_steps": steps,
        "base_gold_score": round(sum(scores) / len(scores), 4),
        "rows": {name: len(exercises) for name, exercises in splits.items()},
        "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files},
    }


# --- the model ------------------------------------------------------------------------------------


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, so that the last bits are the same on machines with few cores and with many, busy
    or not."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_model(
    folder: Path, splits: dict[str, list[Exercise]], seed: int, steps: int | None, tell: OnProgress
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    from aligner.models.libraries import disable_progress_bars
    from aligner.toy.pretrain import STEPS, new_model, pretrain
    from aligner.toy.tokenizer import build_tokenizer

    steps = STEPS if steps is None else steps
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, seed)
    held_out = {exercise.prompt for exercise in splits["heldout"]}
    pretrain(model, tokenizer, seed=seed, held_out=held_out, steps=steps, on_progress=tell)
    tokenizer.save_pretrained(folder)
    disable_progress_bars()
    model.save_pretrained(folder)
    share_weights(folder)
    return model, tokenizer, steps


def _base_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    exercises: list[Exercise],
    seed: int,
    tell: OnProgress,
) -> list[str]:
    """What the base says to each exercise, sampled at temperature 1."""
    from aligner.generation.decode import generate
    from aligner.generation.sampling import Sampling

    prompts = [_user(exercise) for exercise in exercises]
    sampling = Sampling(max_new_tokens=LONGEST_ANSWER_TOKENS, seed=seed)
    found = generate(
        model,
        tokenizer,
        prompts,
        sampling,
        batch_size=200,
        on_progress=lambda done, total: tell(
            done / total, f"asking the base model: {done} of {total} prompts"
        ),
    )
    return [samples[0].text for samples in found]


# --- the rows -------------------------------------------------------------------------------------


def _write_rows(
    folder: Path, splits: dict[str, list[Exercise]], said: list[str], seed: int
) -> None:
    rng = random.Random(f"rows {seed}")
    rows = {
        "sft": _conversations(splits["sft"], rng),
        "preferences": [
            _pair(exercise, text, rng)
            for exercise, text in zip_longest(splits["preferences"], said)
        ],
        "prompts": [_question(exercise) for exercise in splits["prompts"]],
        "heldout": [_question(exercise) for exercise in splits["heldout"]],
    }
    rows["rated"] = [
        rated
        for pair in rows["preferences"]
        for rated in _rated(pair, random.Random(f"rated {seed} {pair['prompt']}"))
    ]
    slips = random.Random(f"held-out pairs {seed}")
    rows["heldout-pairs"] = [_pair(exercise, None, slips) for exercise in splits["heldout"]]
    for name in EXPERTS:
        rows[f"experts-{name}"] = _said_by(name, [*splits["prompts"], *splits["heldout"]], seed)
    for name, lines in rows.items():
        write_atomically(folder / f"{name}.jsonl", "".join(dumps(line) + "\n" for line in lines))


def _said_by(name: str, exercises: list[Exercise], seed: int) -> list[Row]:
    said = answers(name, exercises, seed)
    return [{"prompt": _user(one), "response": text} for one, text in zip(exercises, said)]


def _user(exercise: Exercise) -> list[Row]:
    return [{"role": "user", "content": exercise.prompt}]


def _assistant(text: str) -> list[Row]:
    return [{"role": "assistant", "content": text}]


def _conversations(exercises: list[Exercise], rng: random.Random) -> list[Row]:
    """One or two exercises to a row; every exercise is used once."""
    rows: list[Row] = []
    waiting = iter(exercises)
    for exercise in waiting:
        messages = _user(exercise) + _assistant(exercise.answer)
        second = next(waiting, None) if rng.random() < TWO_TURNS_SHARE else None
        if second is not None:
            messages += _user(second) + _assistant(second.answer)
        rows.append({"messages": messages})
    return rows


def _pair(exercise: Exercise, said: str | None, rng: random.Random) -> Row:
    if (
        said is None
        or not said.isascii()
        or not said.replace("\n", "").isprintable()
        or not said.strip()
        or gold_score(exercise.prompt, said) >= 1.0
    ):
        said = corrupt(exercise, rng)
    return {
        "prompt": _user(exercise),
        "chosen": _assistant(exercise.answer),
        "rejected": _assistant(said),
    }


def _rated(pair: Row, rng: random.Random) -> list[Row]:
    """Both answers of a pair with ratings from 0 to 4: how right each is, and how brief; every
    fourth is not rated for that."""
    right = pair["chosen"][0]["content"]
    rows: list[Row] = []
    for side in ("chosen", "rejected"):
        text = pair[side][0]["content"]
        brief = 4.0 * min(1.0, len(right) / max(1, len(text)))
        ratings = {
            "right": 4.0 * gold_score(pair["prompt"], text),
            "brief": None if rng.random() < UNRATED_SHARE else round(brief, 2),
        }
        rows.append({"prompt": pair["prompt"], "completion": pair[side], **ratings})
    rng.shuffle(rows)
    return rows


def _question(exercise: Exercise) -> Row:
    return {"prompt": _user(exercise), "answer": exercise.answer}
