"""Parse the command line of a training command into a recipe's name, overrides and flags.

`--learning_rate 5e-6`, `--learning-rate=5e-6`, `--bf16`, `--no-bf16`, `--bf16 false`, `-o runs/x`,
`trainer.max_steps=10`. Which flag sets which key stands in `flag_table.py`. Nothing is validated
here beyond what a flag can mean; the values go through the same checks as a recipe's. All problems
are reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from aligner.config import flag_table, hints
from aligner.config.flag_table import OPTIONS, SHORT, all_flags, flags_of
from aligner.config.introspect import dotted_keys, is_switch
from aligner.config.method import Flag
from aligner.config.overrides import FlagValue, read_shell_value
from aligner.config.validate import place_of
from aligner.errors import Problem, UsageError
from aligner.methods.catalogue import method_of, trainer_fields, trainer_settings

_OVERRIDE = re.compile(r"^[A-Za-z_][\w\[\].-]*=")
_NUMBER = re.compile(r"^-\.?\d")
_TRUE = ("true", "yes", "on", "y", "t", "1")
_FALSE = ("false", "no", "off", "n", "f", "0")


@dataclass
class Arguments:
    """What a command line says: which recipe, which overrides, which flags (dotted key -> value and
    flag as typed).

    `options` holds the command's own switches (`resume`, `dry_run`, ...); `notes` are things the
    user should know.
    """

    ref: str | None = None
    overrides: list[str] = field(default_factory=list)
    flags: dict[str, FlagValue] = field(default_factory=dict)
    options: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parse_arguments(arguments: Sequence[str], method: str) -> Arguments:
    """Read everything after `aligner METHOD`. Raises UsageError with every problem."""
    parser = _Parser(list(arguments), method)
    parser.run()
    if parser.problems:
        count = "a problem" if len(parser.problems) == 1 else f"{len(parser.problems)} problems"
        raise UsageError(
            f"{count} in the command line", "`--help` lists the flags", parser.problems
        )
    return parser.result


class _Parser:
    """One pass over the tokens, left to right."""

    def __init__(self, tokens: list[str], method: str) -> None:
        self.tokens = tokens
        self.method = method
        self.recipe_class = method_of(method).recipe
        self.flags = flags_of(method)
        self.result = Arguments()
        self.problems: list[Problem] = []

    def run(self) -> None:
        while self.tokens:
            token = self.tokens.pop(0)
            if token == "--":
                self._complain(token, "nothing is passed on to another program", "leave it out")
            elif token.startswith("-") and len(token) > 1:
                self._flag(token)
            elif _OVERRIDE.match(token):
                self.result.overrides.append(token)
            else:
                self._recipe(token, token)
        self._check_adapters()

    def _complain(self, where: str, message: str, hint: str = "") -> None:
        self.problems.append(Problem(message, where=where, hint=hint))

    def _recipe(self, value: str, token: str) -> None:
        if self.result.ref not in (None, value):
            self._complain(
                token,
                f"a recipe is named already: `{self.result.ref}`",
                "settings are `key=value` or `--flag`",
            )
            return
        self.result.ref = value

    def _flag(self, token: str) -> None:
        typed, equals, attached = token.partition("=")
        name = self._name(typed)
        value = attached if equals else None
        if name in OPTIONS:
            state = self._truth(typed, "true" if value is None else value)
            if state is not None:
                self.result.options[name] = state
        elif name in _SPECIAL:
            _SPECIAL[name](self, typed, self._value(typed, value, name == "resume_from_checkpoint"))
        elif (flag := self._own(name)) is not None:
            self._known(flag, typed, value)
        elif "." in name:
            self._key(name, typed, value, is_switch(self.recipe_class, tuple(name.split("."))))
        elif name in trainer_settings(self.method):
            self._key(f"trainer.{name}", typed, value, self._is_trainer_switch(name))
        elif name.startswith("no_") and value is None and self._negate(name[3:], typed):
            pass
        else:
            self._unknown(name, typed)
            self._skip_values(value)

    def _name(self, typed: str) -> str:
        name = typed.lstrip("-").replace("-", "_")
        return SHORT.get(name, name) if not typed.startswith("--") else name

    def _own(self, name: str) -> Flag | None:
        """The flag of that name, unless it belongs to another method (`--loss_type` is the
        objective of `dpo` only)."""
        flag, section = self.flags.get(name), method_of(self.method).model_section
        if flag is None or not flag.key.startswith("model."):
            return flag
        return replace(flag, key=f"{section}{flag.key.removeprefix('model')}")

    def _is_trainer_switch(self, name: str) -> bool:
        return "bool" in trainer_fields(self.method)[name]["type"].split(" | ")

    # -- values
    # ----------------------------------------------------------------------------------------------

    def _value(self, typed: str, attached: str | None, is_switch: bool = False) -> str | None:
        """The text that belongs to a flag; "true" for a bare switch."""
        if attached is not None:
            return attached
        following = self.tokens[0] if self.tokens else None
        if is_switch:
            is_state = following is not None and following.lower() in (*_TRUE, *_FALSE, "auto")
            return self.tokens.pop(0) if is_state or "checkpoint" in (following or "") else "true"
        if following is None or (following.startswith("-") and not _NUMBER.match(following)):
            self._complain(typed, "needs a value")
            return None
        return self.tokens.pop(0)

    def _skip_values(self, attached: str | None) -> None:
        """Leave out what follows an unknown flag, so that it is not taken for a recipe."""
        if (
            attached is None
            and self.tokens
            and not self.tokens[0].startswith("-")
            and not _OVERRIDE.match(self.tokens[0])
        ):
            self.tokens.pop(0)

    def _many(self, typed: str, attached: str | None) -> Any:
        first = self._value(typed, attached)
        if first is None:
            return None
        values = first.strip("[]").split(",")
        while (
            attached is None
            and self.tokens
            and re.fullmatch(r"\w+(\.\w+)*(?<!\.yaml)(?<!\.yml)", self.tokens[0])
        ):
            values.append(self.tokens.pop(0))
        values = [value.strip(" '\"") for value in values]
        return values if len(values) > 1 or values[0] != "all-linear" else values[0]

    def _set(self, key: str, value: Any, typed: str) -> None:
        before = self.result.flags.get(key)
        if (
            before is not None
            and before.value != value
            and self._name(before.name) != self._name(typed)
        ):
            hint = f"`{key}` cannot be both {before.value} and {value}"
            self._complain(typed, f"contradicts `{before.name}`", hint)
            return
        self.result.flags[key] = FlagValue(value, typed)

    # -- kinds of flags
    # ----------------------------------------------------------------------------------------------

    def _known(self, flag: Flag, typed: str, attached: str | None) -> None:
        if flag.values is not None:
            state = self._truth(typed, self._value(typed, attached, is_switch=True))
            if state is not None:
                self._set(flag.key, flag.values[state], typed)
        elif flag.many:
            values = self._many(typed, attached)
            if values is not None:
                self._set(flag.key, values, typed)
        elif flag.key == "data.train":
            self._data(typed, attached)
        else:
            self._key(
                flag.key, typed, attached, is_switch(self.recipe_class, tuple(flag.key.split(".")))
            )

    def _data(self, typed: str, attached: str | None) -> None:
        path = self._value(typed, attached)
        if path is None:
            return
        before = self.result.flags.get("data.train")
        value = (
            path
            if before is None
            else [*([before.value] if isinstance(before.value, str) else before.value), path]
        )
        self.result.flags["data.train"] = FlagValue(value, typed)

    def _key(self, key: str, typed: str, attached: str | None, switch: bool) -> None:
        text = self._value(typed, attached, is_switch=switch)
        if text is None:
            return
        lowered = text.lower()
        if switch and lowered in (*_TRUE, *_FALSE):
            self._set(key, lowered in _TRUE, typed)
            return
        try:
            self._set(key, read_shell_value(self.recipe_class, tuple(key.split(".")), text), typed)
        except yaml.YAMLError as error:
            self._complain(
                typed,
                f"`{text}` cannot be read: {getattr(error, 'problem', error)}",
                "quote it in the shell",
            )

    def _truth(self, typed: str, text: str | None) -> bool | None:
        if text is None:
            return None
        if text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
        self._complain(typed, f"expected true or false, found `{text}`")
        return None

    def _negate(self, name: str, typed: str) -> bool:
        """`--no-bf16`, `--no-use_peft`: false for a flag that can be on or off."""
        flag = self._own(name)
        if flag is not None and flag.values is not None:
            self._set(flag.key, flag.values[False], typed)
        elif flag is not None and is_switch(self.recipe_class, tuple(flag.key.split("."))):
            self._set(flag.key, False, typed)
        elif (
            flag is None and name in trainer_settings(self.method) and self._is_trainer_switch(name)
        ):
            self._set(f"trainer.{name}", False, typed)
        elif name in OPTIONS:
            self.result.options[name] = False
        else:
            return False
        return True

    def _unknown(self, name: str, typed: str) -> None:
        place = place_of(self.recipe_class, name)
        if place:
            self._complain(typed, "is not a flag", place)
            return
        near = hints.closest(
            name, dict.fromkeys([*all_flags(), *trainer_settings(self.method), *OPTIONS])
        )
        keys = [
            key
            for key in dotted_keys(self.recipe_class)
            if key.rsplit(".", 1)[-1] == name and "[" not in key
        ]
        hint = f"did you mean `--{near}`?" if near else (f"write `{keys[0]}=...`" if keys else "")
        self._complain(typed, "unknown flag", hint)

    # -- flags with a meaning of their own
    # ----------------------------------------------------------------------------

    def _config(self, typed: str, value: str | None) -> None:
        if value is not None:
            self._recipe(value, typed)

    def _warmup_ratio(self, typed: str, value: str | None) -> None:
        if value is None:
            return
        try:
            ratio = float(value)
        except ValueError:
            self._complain(typed, f"expected a number, found `{value}`")
            return
        if not 0 <= ratio < 1:
            hint = (
                "it is written as `warmup_steps` now, where 1 or more counts steps; "
                "`--warmup_steps` takes either"
            )
            self._complain(typed, f"must be at least 0 and below 1, found {value}", hint)
            return
        self._set("trainer.warmup_steps", ratio, typed)

    def _resume(self, typed: str, value: str | None) -> None:
        if value is None:
            return
        if value.lower() in (*_TRUE, *_FALSE):
            self.result.options["resume"] = value.lower() in _TRUE
            return
        hint = "write `--resume`: it finds the last complete checkpoint of the run directory"
        self._complain(typed, f"a checkpoint cannot be chosen, found `{value}`", hint)

    def _accelerate_config(self, typed: str, value: str | None) -> None:
        if value is None:
            return
        self._set("launch.strategy", flag_table.ACCELERATE_CONFIGS.get(value, value), typed)
        if value == "single_gpu":
            self._set("launch.num_processes", 1, typed)

    def _num_proc(self, typed: str, value: str | None) -> None:
        if value is not None:
            self.result.notes.append(
                f"`{typed} {value}` has no effect: rows become tokens once, in one process"
            )

    def _check_adapters(self) -> None:
        whole = self.result.flags.get("model.lora")
        if whole is None or whole.value is not None:
            return
        for key, given in self.result.flags.items():
            if key.startswith("model.lora."):
                self._complain(given.name, f"contradicts `{whole.name}`", "drop one of them")


_SPECIAL: dict[str, Callable[[_Parser, str, str | None], None]] = {
    "config": _Parser._config,
    "warmup_ratio": _Parser._warmup_ratio,
    "resume_from_checkpoint": _Parser._resume,
    "accelerate_config": _Parser._accelerate_config,
    "dataset_num_proc": _Parser._num_proc,
}
