"""`python -m experiments`."""

import os
import sys

if "TORCHELASTIC_RUN_ID" in os.environ:
    # torch takes it from there when it is imported: each process would be advised about speed at length.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from experiments.command.cli import main

sys.exit(main())
