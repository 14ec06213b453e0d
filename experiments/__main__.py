"""`python -m experiments`."""

import sys

from experiments.command.cli import main

sys.exit(main())
