"""How good an objective is: DPO trainings with it over several seeds, in a process of their own.

    python -m aligner.methods.discover.measure JOB.json PARENT    writes seed-N.json for each seed
                                                                  beside the job

A training cannot take the search down, whatever it does: it has its own process, a log and a time
limit, and a seed that was measured before a kill is not measured again. The bandit runs in the
sandbox instead (`aligner.losses.dsl.sandboxed`). The reference's log-probabilities are computed
once for all objectives and seeds, since their cache is keyed by content.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from aligner.errors import UsageError
from aligner.runs.files import dumps, write_atomically


@dataclass(frozen=True)
class Job:
    """Trainings to run: a DPO recipe with overrides, the objective, and prompts whose answers are
    scored.

    Of the prompts the 1st, 3rd, ... give the fitness and the 2nd, 4th, ... the held-out result.
    """

    recipe: str
    overrides: list[str]
    loss: str
    seeds: list[int]
    prompts: str
    reward_model: str
    max_new_tokens: int
    folder: str


class MeasuringError(Exception):
    """The trainings of an objective failed; the text says how."""


def measure(job: Job, timeout_s: float) -> tuple[list[float], list[float]]:
    """Run a job in a process of its own; return fitness and held-out result for each seed.

    The process ends with this one, however that ends (on Linux).

    Raises: MeasuringError when the objective is to blame; UsageError when the recipe or the place
    is.
    """
    folder = Path(job.folder)
    file = folder / "job.json"
    write_atomically(file, dumps(asdict(job), indent=2))
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "aligner.methods.discover.measure", str(file), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise MeasuringError(f"training took longer than {timeout_s / 60:g} minutes") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
                process.wait()
    if code == UsageError.exit_code:
        raise UsageError(_last_words(folder / "log.txt"), f"the whole log is {folder / 'log.txt'}")
    if code != 0:
        raise MeasuringError(
            _last_words(folder / "log.txt") or f"training ended with exit code {code}"
        )
    files = [folder / f"seed-{seed}.json" for seed in job.seeds]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [float(one["fitness"]) for one in found], [float(one["held_out"]) for one in found]


def _last_words(log: Path) -> str:
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1][-500:] if lines else ""


def main(file: str, parent: str) -> int:
    """Run the job in a file; `parent` is the process that waits for it."""
    from aligner.errors import AlignerError
    from aligner.losses.dsl.sandboxed import die_with_parent

    die_with_parent(int(parent))
    job = Job(**json.loads(Path(file).read_text(encoding="utf-8")))
    try:
        for seed in job.seeds:
            result = Path(job.folder) / f"seed-{seed}.json"
            if not result.exists():
                write_atomically(result, dumps(one_seed(job, seed)))
    except AlignerError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        return error.exit_code
    return 0


def one_seed(job: Job, seed: int) -> dict[str, float]:
    """Train once and score the answers; return fitness and held-out result."""
    from aligner.config.load import load_recipe
    from aligner.methods.pipeline import run_recipe

    output = Path(job.folder) / f"run-{seed}"
    ours = [
        f"dpo.loss={job.loss}",
        f"seed={seed}",
        f"output_dir={output}",
        "report.num_prompts=0",
        "trainer.save_strategy='no'",
    ]
    run_recipe(load_recipe("dpo", job.recipe, [*job.overrides, *ours]), overwrite=True)
    scores = score_halves(str(output / "final"), job, seed)
    shutil.rmtree(output)
    return dict(zip(("fitness", "held_out"), scores))


def score_halves(model_path: str, job: Job, seed: int) -> list[float]:
    """Return the mean score of one sampled answer (temperature 1) to each prompt, of both halves of
    the prompts."""
    from aligner.config.recipe import Data, Model, Source
    from aligner.data.loading import load_rows
    from aligner.evaluation.evaluate import evaluate
    from aligner.generation.sampling import Sampling
    from aligner.models.loading import load_policy
    from aligner.models.tokenizers import load_tokenizer
    from aligner.reward_models.catalogue import load_scorer

    section = Model(name_or_path=model_path)
    tokenizer = load_tokenizer(section)
    model = load_policy(section, tokenizer, trainable=False)
    rows = load_rows(Data(train=[Source(path=job.prompts)]), "prompts", 0).train
    sampling = Sampling(max_new_tokens=job.max_new_tokens, temperature=1.0, seed=seed)
    scorer = load_scorer(job.reward_model)
    return [
        evaluate(
            model,
            tokenizer,
            rows[start::2],
            task="prompts",
            scorer=scorer,
            sampling=sampling,
            batch_size=100,
        )["score"]
        for start in (0, 1)
    ]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
