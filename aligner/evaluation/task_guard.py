"""Let task files of lm-evaluation-harness run no code of their own.

A task file can name Python functions (`!function`), metrics that are fetched as programs, data that
is unpickled, and write templates, which the harness evaluates with all of Jinja. Its own functions
are part of what was installed. The rest is refused here, and every template is evaluated in Jinja's
sandbox, unless the user trusts the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aligner.errors import UsageError

HINT = "add --trust-remote-code if you trust it"

PLAIN = ("arrow", "csv", "json", "parquet", "text")
"""Readers of `datasets` for files that are data. Others unpickle, ask databases, or open what they
hold."""


@contextmanager
def contained(*, trusted: bool) -> Iterator[None]:
    """Run what follows so that task files are data; as the harness itself does where they are
    trusted."""
    if trusted:
        yield
        return
    import datasets
    import lm_eval.api.task as task_module
    from lm_eval import utils
    from lm_eval.tasks import _yaml_loader

    with ExitStack() as stack:
        for module, name, value in (
            (utils, "env", _sandboxed(utils.env)),
            (_yaml_loader, "_import_func_in_yml", _own_function(_yaml_loader._import_func_in_yml)),
            (_yaml_loader, "_load_module_with_cache", _own_module(_yaml_loader)),
            (task_module, "get_metric", _own_metric(task_module.get_metric)),
            (datasets, "load_dataset", _plain_data(datasets.load_dataset)),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


def _home() -> Path:
    import lm_eval

    assert lm_eval.__file__ is not None
    return Path(lm_eval.__file__).resolve().parent


def _sandboxed(plain: Any) -> Any:
    """A sandbox with the settings and filters of an environment."""
    from jinja2.sandbox import SandboxedEnvironment

    made = SandboxedEnvironment(
        undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    made.filters.update(plain.filters)
    return made


def _own_function(original: Callable[[str, Path], Any]) -> Callable[[str, Path], Any]:
    def guarded(name: str, folder: Path) -> Any:
        if not Path(folder).resolve().is_relative_to(_home()):
            raise UsageError(f"a task file in {folder} runs code: !function {name}", HINT)
        return original(name, folder)

    return guarded


def _own_module(loader: Any) -> Callable[[Path], Any]:
    original = loader._load_module_with_cache

    def guarded(path: Path) -> Any:
        if not Path(path).resolve().is_relative_to(_home()):
            raise UsageError(f"a task file runs code: {path}", HINT)
        return original(path)

    return guarded


def _own_metric(original: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(name: str, hf_evaluate_metric: bool = False) -> Any:
        from lm_eval.api import metrics, registry

        assert metrics is not None, "importing them fills the registry"
        if hf_evaluate_metric or name not in registry.metric_registry:
            raise UsageError(
                f"the metric {name!r} is none of lm-evaluation-harness's own: it would be fetched "
                "and run as a program",
                f"name another one, or {HINT}",
            )
        return original(name, hf_evaluate_metric)

    return guarded


def _plain_data(original: Callable[..., Any]) -> Callable[..., Any]:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as readers

    def guarded(path: str, *more: Any, **options: Any) -> Any:
        if path in readers and path not in PLAIN:
            raise UsageError(
                f"a task file reads its data with {path!r}, which may run what it reads",
                f"use one of {', '.join(PLAIN)}, or {HINT}",
            )
        return original(path, *more, **options)

    return guarded
