"""`python -m experiments.kernels` is `fusebench kernels`."""

import sys

from experiments.kernels.command import main

sys.exit(main())
