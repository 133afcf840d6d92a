"""`python -m experiments.trace` is `fusebench trace`."""

import sys

from experiments.trace import main

sys.exit(main())
