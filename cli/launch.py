"""`aligner launch RECIPE`: how a training is started, on one machine, several, or a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .any_recipe import method_in, resolve_any
from .console import say

if TYPE_CHECKING:
    from aligner.config.load import Resolved
    from aligner.config.recipe import Launch

UNKNOWN_NODE = "launch.main_process_ip=first-node-of-the-job"
"""Stands for an address that only a job of Slurm knows."""


def launch(
    context: typer.Context,
    slurm: Annotated[bool, typer.Option("--slurm", help="Print a script for sbatch.")] = False,
    nodes: Annotated[
        int | None, typer.Option("--nodes", min=1, help="Machines; else those of the recipe.")
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option("--gpus-per-node", min=0, help="GPUs of each, one process for each; 0: none."),
    ] = None,
    processes_per_node: Annotated[
        int | None,
        typer.Option("--processes-per-node", min=1, help="Processes of each, without GPUs."),
    ] = None,
    cpus_per_node: Annotated[
        int | None, typer.Option("--cpus-per-node", min=1, help="CPU cores of each (Slurm).")
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Longest time, as Slurm writes it: 12:00:00.")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Partition (Slurm).")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Account (Slurm).")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option("--sbatch", metavar="NAME=VALUE", help="Another option of sbatch: qos=high."),
    ] = None,
    setup: Annotated[
        list[str] | None,
        typer.Option(
            "--setup", metavar="LINE", help="Shell before it, for this virtual environment's."
        ),
    ] = None,
) -> None:
    """Print how a training starts on one machine or several.

    Nothing is started. A line for each machine, or with --slurm a script that takes numbers and
    addresses from the job. The recipe is checked with what stands there.

    Example: aligner launch recipe.yaml --slurm --nodes 2 --gpus-per-node 8 --time 12:00:00 > job.sh
    """
    from aligner.errors import UsageError

    if not context.args or context.args[0].startswith("-") or "=" in context.args[0]:
        raise UsageError("a recipe is started, and none is named", "aligner launch RECIPE")
    if gpus_per_node and processes_per_node is not None:
        message = "--processes-per-node has no effect with --gpus-per-node: each GPU has a process"
        raise UsageError(message, "drop it")
    of_slurm: dict[str, object] = {
        "--cpus-per-node": cpus_per_node,
        "--time": time,
        "--partition": partition,
    }
    of_slurm |= {"--account": account, "--sbatch": sbatch, "--setup": setup}
    for option in (name for name, value in of_slurm.items() if value is not None and not slurm):
        raise UsageError(f"{option} has no effect without --slurm", "add --slurm")
    ref, *settings = context.args
    _refuse_secrets(settings)
    found = _resolve(ref, settings, nodes, gpus_per_node, processes_per_node, slurm=slurm)
    from aligner.launch.command import check_launch
    from aligner.launch.machines import (
        PLACES,
        Job,
        machine_lines,
        own_environment,
        sbatch_script,
    )
    from aligner.methods.catalogue import command_of

    section = _launch_of(found)
    here = section.num_processes // section.num_machines
    gpus = here if gpus_per_node is None else gpus_per_node
    if section.num_processes > 1:
        port = section.main_process_port or 1
        check_launch(section.model_copy(update={"main_process_port": port}), gpus)
    rest = [text for text in settings if text.partition("=")[0] not in PLACES]
    command = [*command_of(found.recipe.method).split(), ref, *rest]
    if not slurm:
        for number, line in enumerate(machine_lines(section, command)):
            if section.num_machines > 1:
                where = f" ({section.main_process_ip})" if number == 0 else ""
                say(f"# machine {number}{where}")
            say(line)
        return
    job = Job(
        nodes=section.num_machines,
        gpus_per_node=gpus,
        name=f"aligner-{found.recipe.method}",
        output_dir=str(found.recipe.output_dir),
        cpus_per_node=cpus_per_node,
        time=time,
        partition=partition,
        account=account,
        further=sbatch or (),
        setup=own_environment() if setup is None else setup,
    )
    for line in sbatch_script(job, section, command).splitlines():
        say(line)


def _resolve(
    ref: str,
    settings: list[str],
    nodes: int | None,
    gpus: int | None,
    processes: int | None,
    *,
    slurm: bool,
) -> Resolved:
    """The recipe, checked with the machines and processes that are asked for."""
    from aligner.launch.machines import placed
    from aligner.methods.catalogue import method_of

    has_launch = "launch" in method_of(method_in(ref, settings)).recipe.model_fields
    where = [UNKNOWN_NODE] if slurm and has_launch else []
    given, _ = resolve_any(ref, [*settings, *where])
    section = _launch_of(given)
    machines = nodes or section.num_machines
    here = gpus or processes or section.num_processes // section.num_machines
    section = section.model_copy(
        update={"num_machines": machines, "num_processes": machines * here}
    )
    _refuse_other_machines(given, section)
    return resolve_any(ref, [*settings, *placed(section), *where])[0]


def _launch_of(found: Resolved) -> Launch:
    """The section that says how a training is started; one process where a method has none."""
    from aligner.config.recipe import Launch

    section: Launch = getattr(found.recipe, "launch", Launch())
    return section


def _refuse_other_machines(found: Resolved, section: Launch) -> None:
    """Refuse several machines where rounds are led by one process, and processes where there is
    none but one."""
    from aligner.errors import UsageError
    from aligner.methods.catalogue import command_of
    from aligner.methods.steps import has_steps

    name = command_of(found.recipe.method)
    if not hasattr(found.recipe, "launch") and section.num_processes > 1:
        raise UsageError(f"`aligner {name}` runs in one process", "leave out nodes and GPUs")
    if not has_steps(found.recipe.method) and section.num_machines > 1:
        raise UsageError(
            f"`aligner {name}` runs on one machine: one process leads its rounds",
            "use --nodes 1, with as many GPUs as that machine has",
        )


def _refuse_secrets(settings: list[str]) -> None:
    """Refuse to print what looks like a key."""
    from aligner.errors import UsageError
    from aligner.runs.environment import REDACTED, command_line

    if REDACTED in command_line(settings):
        raise UsageError(
            "a setting holds what looks like a key, which does not belong into a script",
            "name an environment variable in the recipe, and set it where the script runs",
        )
