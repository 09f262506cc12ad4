"""aligner: post-training and alignment of language models, from YAML recipes and from Python.

    run = aligner.train("tiny/dpo", overrides={"trainer.max_steps": 20})

The names below are loaded when they are first used, so that `import aligner` costs nothing.
`docs/python.md` shows them at work.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aligner import errors as errors
    from aligner.builders.mosaic.recipe import MosaicRecipe as MosaicRecipe
    from aligner.config.api import load_recipe as load_recipe
    from aligner.config.load import Resolved as Resolved
    from aligner.config.recipe import Data as Data
    from aligner.config.recipe import Lora as Lora
    from aligner.config.recipe import Model as Model
    from aligner.config.recipe import Source as Source
    from aligner.data.api import load_rows as load_rows
    from aligner.evaluation.evaluate import evaluate as evaluate
    from aligner.generation.decode import generate as generate
    from aligner.generation.sampling import Sampling as Sampling
    from aligner.methods.api import train as train
    from aligner.methods.dpo.recipe import DpoRecipe as DpoRecipe
    from aligner.methods.reward.recipe import RewardRecipe as RewardRecipe
    from aligner.methods.sapo.recipe import SapoRecipe as SapoRecipe
    from aligner.methods.sft.recipe import SftRecipe as SftRecipe
    from aligner.models.api import load_model as load_model
    from aligner.models.api import load_tokenizer as load_tokenizer
    from aligner.reward_models.catalogue import load_scorer as load_scorer
    from aligner.runs.api import RunView as RunView
    from aligner.runs.api import open_run as open_run

__version__ = "0.1.0"

_HOMES = {
    "aligner.builders.mosaic.recipe": ("MosaicRecipe",),
    "aligner.config.api": ("load_recipe",),
    "aligner.config.load": ("Resolved",),
    "aligner.config.recipe": ("Data", "Lora", "Model", "Source"),
    "aligner.data.api": ("load_rows",),
    "aligner.evaluation.evaluate": ("evaluate",),
    "aligner.generation.decode": ("generate",),
    "aligner.generation.sampling": ("Sampling",),
    "aligner.methods.api": ("train",),
    "aligner.methods.dpo.recipe": ("DpoRecipe",),
    "aligner.methods.reward.recipe": ("RewardRecipe",),
    "aligner.methods.sapo.recipe": ("SapoRecipe",),
    "aligner.methods.sft.recipe": ("SftRecipe",),
    "aligner.models.api": ("load_model", "load_tokenizer"),
    "aligner.reward_models.catalogue": ("load_scorer",),
    "aligner.runs.api": ("RunView", "open_run"),
}
"""Module -> what it gives to `aligner`."""

_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", "errors", *_HOME]

if not TYPE_CHECKING:

    def __getattr__(name):
        """Load a name of `_HOMES` on its first use (PEP 562)."""
        if name == "errors":
            return import_module("aligner.errors")
        if name not in _HOME:
            raise AttributeError(f"module 'aligner' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
