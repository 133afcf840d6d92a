"""`python -m experiments.kernels` is `fusebench kernels`."""

import sys

from experiments.kernels import main

sys.exit(main())
