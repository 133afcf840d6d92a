"""What can go wrong and is nobody's bug, and how it is said in a row."""

# Characters of a reason that fit a table.
REASON_WIDTH = 200


class UserError(ValueError):
    """Bad input; the message names the key or file at fault and the mend. Commands print it and exit with code 2."""


class Unsupported(Exception):
    """What an engine cannot do, or what is not installed: its cells are skipped with this reason, the rest run."""


def first_line(error: BaseException | str) -> str:
    """The first line of an error's words, cut to fit a table; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:REASON_WIDTH]
