"""Errors that a user can mend: commands print them as one line and exit with code 2."""


class UserError(ValueError):
    """Bad input; the message names the key or file at fault and the mend."""
