"""Errors that a user can mend. Commands print them as one line and exit with code 2."""


class UserError(ValueError):
    """Bad input; the message names the key or file at fault and the mend."""


class ModelError(UserError):
    """A model folder, file or config that cannot be loaded as it is."""


class RequestError(UserError):
    """One request that cannot be served; the others go on."""
