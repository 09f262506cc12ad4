"""FSDP over processes on CPU, which torch can and accelerate leaves out.

`fully_shard` of torch works over gloo, and so does all that accelerate and transformers do with a
model that is split: gathering it for checkpoints, loading it, clipping. But accelerate (1.15) lets
its FSDP plugin in only on devices with a backend of their own, and without a word trains whole
copies (DDP) elsewhere. `let_cpus_shard` closes that gap. FSDP1 stays out: its plugin asks for a GPU
itself.
"""

from __future__ import annotations

from typing import Any

from aligner.launch.world import strategy_of_launcher


def let_cpus_shard() -> None:
    """Let accelerate split a model over ranks on CPU, where the launcher of this rank asks for
    FSDP2; to be called in a rank before it makes an `Accelerator`."""
    if strategy_of_launcher() != "fsdp":
        return
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    usual = AcceleratorState.__init__
    if getattr(usual, "shards_on_cpu", False):
        return

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        usual(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    init.shards_on_cpu = True  # type: ignore[attr-defined]
    AcceleratorState.__init__ = init
