"""Starts a learner's processes: torchrun, with a service's exit codes and one line about a process that died.

    python -m services.learner.distributed --config learner.toml      as torchrun, which reads PET_* (the cluster's way)
    trimtab learner --processes 2 --config learner.toml               on this machine

All processes end together; restarting is for whoever started this one, and goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

_MISTAKE = 2


class LaunchProgram:
    """See services/common/entry.py Program: several processes of this very command. `options`: torchrun's."""

    def __init__(self, options: Sequence[str], cut_off_status: int) -> None:
        self._options, self._cut_off_status = options, cut_off_status

    def run(self) -> int:
        """See `launch`."""
        return launch(sys.argv[1:], self._options, self._cut_off_status)


def launch(arguments: Sequence[str], options: Sequence[str], cut_off_status: int) -> int:
    """Run the learner's processes to their end: 0, 1, or 2 for a user's mistake. `options`: torchrun's.

    cut_off_status: after SIGTERM. torchrun does not tell what the processes ended with then, so it is returned also
    where the run was carried through and the first one only lingered: another start finds nothing to train.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # until the model is loaded; then as run.model.threads says
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # 30 lines where one will do
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args([*options, "-m", "services.learner", *arguments]))
    except SignalException:
        return cut_off_status
    except ChildFailedError as error:
        return told(error)
    return 0


def told(error: Any) -> int:
    """The exit code of what failed; a process that could not speak for itself is spoken for."""
    for rank, failure in sorted(error.failures.items()):
        if failure.exitcode < 0:
            sys.stderr.write(
                f"trimtab-learner: process {rank} was ended by {failure.signal_name()}, so all of them stop: "
                "started again, the run goes on from its last checkpoint\n"
            )
            return 1
    return _MISTAKE if any(one.exitcode == _MISTAKE for one in error.failures.values()) else 1
