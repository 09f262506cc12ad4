"""Try the trainer's settings that depend on this machine before any row is tokenized.

A device may lack bfloat16 or TF32, an optimizer its kernels, a schedule may not fit its rate, a
compiler may be absent. So the arguments are built as the training will build them, and their
optimizer and schedule take four steps with a layer of a few thousand weights, on the device of the
training. In front of several processes this happens on the CPU, where it takes no memory of theirs.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from aligner.config.recipe import TrainRecipe
from aligner.methods.catalogue import trainer_of
from aligner.runs.run import Run
from aligner.training.arguments import told_by_key, training_arguments

STEPS = 4
WIDTH = 96
"""Of the layer: bitsandbytes keeps the states of fewer than 4,096 weights in 32 bits."""

BY_MODEL = ("galore", "apollo", "lomo", "adalomo")
"""Optimizers that are made for the layers of one model, so that another says nothing about them."""

OF_DEVICE = ("bf16", "bf16_full_eval", "fp16", "fp16_full_eval", "tf32")


def rehearse(recipe: TrainRecipe, origins: Mapping[str, str] = {}) -> list[tuple[str, str, str]]:
    """Try the trainer's settings; `origins` says where each key was written. Returns what this
    device decides of them, as rows of a plan: (what, value, origin).

    Raises: RecipeError naming the key, with what the library says.
    """
    with tempfile.TemporaryDirectory(prefix="aligner-rehearsal-") as folder:
        with told_by_key("trainer", recipe, origins):
            arguments = _arguments(recipe, Path(folder))
        with told_by_key("trainer.activation_offloading", recipe, origins):
            offloads = (
                recipe.trainer.get("activation_offloading") and recipe.launch.num_processes == 1
            )
            if offloads and arguments.device.type == "cpu":
                raise ValueError(
                    "activations are moved from a GPU to the CPU, and this training is on the CPU"
                )
        if not arguments.optim.startswith(BY_MODEL):
            _try_steps(arguments, recipe, origins)
        return _decided(arguments, recipe, origins)


def _decided(
    arguments: TrainingArguments, recipe: TrainRecipe, origins: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """What this device decides; nothing in front of several processes, which have their own."""
    if recipe.launch.num_processes > 1:
        return [("precision", "as the device of each process allows", "known when they start")]
    half = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else ""
    precision = f"mixed, {half} and float32" if half else "that of the weights"
    kept = "computed again in the backward pass" if arguments.activation_checkpointing else "kept"
    rows = [("precision", precision, "bf16"), ("activations", kept, "gradient_checkpointing")]
    return [
        ("device", arguments.device.type, ""),
        *((what, value, origins.get(f"trainer.{key}", "this device")) for what, value, key in rows),
    ]


def _arguments(recipe: TrainRecipe, folder: Path) -> TrainingArguments:
    module, _, name = trainer_of(recipe.method).trainer_class.partition(".")
    argument_class = getattr(importlib.import_module(module), name)
    if recipe.launch.num_processes > 1:
        kept = {key: value for key, value in recipe.trainer.items() if key not in OF_DEVICE}
        recipe = recipe.model_copy(update={"trainer": {**kept, "use_cpu": True}})
    return training_arguments(recipe, Run(folder), argument_class)


def _try_steps(
    arguments: TrainingArguments, recipe: TrainRecipe, origins: Mapping[str, str]
) -> None:
    layer: torch.nn.Module = torch.nn.Linear(WIDTH, WIDTH, device=arguments.device)
    with told_by_key("trainer.optim", recipe, origins):
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, layer)
        optimizer = optimizer_class(layer.parameters(), **settings)
    with told_by_key("trainer.lr_scheduler_type", recipe, origins):
        schedule = get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=arguments.get_warmup_steps(STEPS),
            num_training_steps=STEPS,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
        )
    forward: Any = layer
    if arguments.torch_compile:
        with told_by_key("trainer.torch_compile", recipe, origins):
            options = {
                "backend": arguments.torch_compile_backend,
                "mode": arguments.torch_compile_mode,
            }
            forward = torch.compile(layer, **options)
            forward(torch.ones(2, WIDTH, device=arguments.device))
    follows_loss = arguments.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    for _ in range(STEPS):
        forward(torch.ones(2, WIDTH, device=arguments.device)).square().mean().backward()
        with told_by_key("trainer.optim", recipe, origins):
            optimizer.step()
            optimizer.zero_grad()
        with told_by_key("trainer.lr_scheduler_type", recipe, origins):
            schedule.step(1.0) if follows_loss else schedule.step()
