"""`python -m experiments.trace` is `fusebench trace`."""

import sys

from experiments.trace.command import main

sys.exit(main())
