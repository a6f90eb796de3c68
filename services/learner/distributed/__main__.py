"""`python -m services.learner.distributed`: torchrun for the learner; its options stand in PET_*."""

import sys

from services.learner.distributed.launch import launch

if __name__ == "__main__":
    raise SystemExit(launch(sys.argv[1:]))
