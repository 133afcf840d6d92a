"""What can go wrong and is nobody's bug."""


class UserError(ValueError):
    """Bad input; the message names the key or file at fault and the mend. Commands print it and exit with code 2."""


class Unsupported(Exception):
    """What an engine cannot do, or what is not installed: its cells are skipped with this reason, the rest run."""
