"""`python -m experiments.traffic`."""

import sys

from experiments.traffic.command import main

sys.exit(main())
