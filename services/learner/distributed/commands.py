"""What the first process tells the others to do with it, and how each of them does it.

    first process (the service)                    every other
    Leader.step(batch)    ──"step", batch──▶       trainer.step(batch)        all pass, reduce, update together
    Leader.serving_weights()   ──"publish"─▶       each tensor, in order; what is its own it publishes
    write_model           ──"gather"───────▶       each tensor, in order
    write_trainer, read_trainer ──"write", "read"▶ its shards
    leave()              ──"leave"──▶              ends

Whatever is called here is called in the model's thread, one thing at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from services.learner.distributed.group import TorchGroup
from services.learner.distributed.shard_files import read_state, write_state
from services.learner.distributed.sharding import Streamed
from services.learner.distributed.weights import ShardedWeights
from services.learner.sample import Sample
from services.learner.training import Trainer
from services.models.loading import LoadedModel


class _Member:
    """One process' part of what all do together."""

    def __init__(self, trainer: Trainer, group: TorchGroup, serving: torch.dtype) -> None:
        self.trainer, self._group, self._serving = trainer, group, serving

    def gathered(self) -> Streamed:
        """The weights that are served, for all processes to go through at once."""
        return Streamed(self.trainer.model, self._serving, self._group.unbroken)

    def _write(self, folder: Path, state: dict[str, Any]) -> None:
        first = self._group.place.rank == 0
        write_state(state, self._sharded, folder, self._group.commands, first=first)

    def _read(self, folder: Path) -> dict[str, Any]:
        return read_state(self._sharded, folder, self._group.commands)

    @property
    def _sharded(self) -> Any:
        optimiser = self.trainer.optimiser
        assert isinstance(optimiser, ShardedWeights)  # noqa: S101 - the group made it
        return optimiser.sharded()


class Leader(_Member):
    """The learner that the run knows (run.py Learner), and the files of its checkpoints (checkpoints.py Files)."""

    adapter = None

    @property
    def step_number(self) -> int:
        """See Learner."""
        return self.trainer.step_number

    @property
    def optimiser(self) -> Any:
        """See Learner: this process' part."""
        return self.trainer.optimiser

    def step(self, samples: Sequence[Sample]) -> dict[str, float]:
        """See Learner."""
        with self._group.unbroken():
            self._group.told(("step", samples))
            return self.trainer.step(samples)

    def serving_weights(self) -> Mapping[str, torch.Tensor]:
        """See Learner. To be published, and gone through to its end before anything else is asked for."""
        with self._group.unbroken():
            self._group.told(("publish", None))
        return self.gathered()

    def components(self) -> dict[str, dict[str, torch.Tensor]]:
        """See Learner."""
        return self.trainer.components()

    def state_dict(self) -> dict[str, Any]:
        """See Learner: with this process' shards."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Learner: what read_trainer gave; the others have taken up theirs."""
        self.trainer.load_state_dict(state)

    def write_model(self, loaded: LoadedModel, folder: Path) -> None:
        """See Files. The whole model stands in this process' main memory for it, in the serving dtype."""
        folder.mkdir(parents=True, exist_ok=True)
        with self._group.unbroken():
            self._group.told(("gather", None))
        state = {name: tensor.cpu() for name, tensor in self.gathered().items()}
        kept = dict(loaded.model.named_buffers()).keys() & loaded.model.state_dict().keys()
        state |= {name: loaded.model.get_buffer(name).cpu() for name in kept}
        loaded.model.save_pretrained(folder, state_dict=state)
        loaded.tokenizer.save_pretrained(folder)

    def write_trainer(self, state: dict[str, Any], folder: Path) -> None:
        """See Files."""
        with self._group.unbroken():
            self._group.told(("write", folder))
            self._write(folder, state)

    def read_trainer(self, folder: Path) -> dict[str, Any]:
        """See Files."""
        with self._group.unbroken():
            self._group.told(("read", folder))
            return self._read(folder)

    def leave(self) -> None:
        """Let the others go. Nothing may be asked for afterwards."""
        with self._group.unbroken():
            self._group.told(("leave", None))


class Follower(_Member):
    """Does what it is told until it may go. `publish` takes what all go through, and keeps what is its own."""

    def __init__(
        self,
        trainer: Trainer,
        group: TorchGroup,
        serving: torch.dtype,
        publish: Callable[[Mapping[str, torch.Tensor]], None],
    ) -> None:
        super().__init__(trainer, group, serving)
        self._publish = publish

    def follow(self) -> None:
        """Returns when the first process has let it go; raises Unavailable when that is gone."""
        does: dict[str, Callable[[Any], Any]] = {
            "step": self.trainer.step,
            "publish": lambda _: self._publish(self.gathered()),
            "gather": lambda _: [None for _ in self.gathered().values()],
            "write": lambda folder: self._write(folder, self.trainer.state_dict()),
            "read": lambda folder: self.trainer.load_state_dict(self._read(folder)),
        }
        with self._group.unbroken():
            while True:
                name, argument = self._group.told()
                if name == "leave":
                    return
                does[name](argument)
