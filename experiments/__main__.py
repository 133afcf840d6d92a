"""`python -m experiments COMMAND` is `fusebench COMMAND`."""

import sys

from experiments.cli import main

sys.exit(main())
