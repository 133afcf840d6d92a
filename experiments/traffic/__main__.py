"""`python -m experiments.traffic` is `fusebench traffic`."""

import sys

from experiments.traffic.command import main

sys.exit(main())
