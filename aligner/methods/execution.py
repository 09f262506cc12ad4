"""Train a prepared job, and finish its run: report, card, and last of all the manifest."""

from __future__ import annotations

from typing import Any

from aligner.config.recipe import TrainRecipe
from aligner.launch.world import world
from aligner.methods.job import Job
from aligner.methods.preparation import load_method
from aligner.methods.steps import steps_of
from aligner.reports.finish import finish_run
from aligner.runs.result import RunResult, finished
from aligner.runs.run import Run


def train_and_finish(job: Job) -> RunResult:
    """Train, and write down what came out. Several ranks do it together; the first one writes."""
    job.say("loading the model")
    load_method(job.recipe)
    _record_devices(job.run)
    from transformers import set_seed

    set_seed(job.recipe.seed)  # what is initialized at random: a fresh adapter, new embeddings
    fitted = steps_of(job.recipe.method).train(job)
    if world()[0] != 0:
        return RunResult(job.run.dir, fitted.results, job.run.dir / "report.html")
    job.say("writing the report")
    finish_run(job.run, fitted.results, _parents(job.recipe, job.run))
    return finished(job.run, fitted.results, job.on_event)


def _parents(recipe: TrainRecipe, run: Run) -> list[dict[str, Any]]:
    """Return where this run came from: its model, its reward models and its data files, with their
    fingerprints."""
    from aligner.models.fingerprint import model_fingerprint

    model = {
        "kind": "model",
        "path": recipe.model.name_or_path,
        "fingerprint": model_fingerprint(recipe.model),
    }
    data = [
        {"kind": "data", "path": path, "fingerprint": digest}
        for path, digest in run.read_json("inputs.json")["sources"].items()
    ]
    rewards = [
        {"kind": "reward_model", "path": member["name"], "fingerprint": member["fingerprint"]}
        for member in (run.read_json("rewards.json") or {}).get("members", [])
    ]
    return [model, *rewards, *data]


def _record_devices(run: Run) -> None:
    if world()[0] != 0:
        return
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    run.record_devices(
        {"gpus": gpus, "cpu_threads": torch.get_num_threads(), "processes": world()[1]}
    )
