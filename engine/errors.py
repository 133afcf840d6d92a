"""Errors that a user can mend, which commands print as one line with exit code 2, and the one that ends an engine."""


class UserError(ValueError):
    """Bad input; the message names the key or file at fault and the mend."""


class ModelError(UserError):
    """A model folder, file or config that cannot be loaded as it is."""


class RequestError(UserError):
    """One request that cannot be served; the others go on."""


class EngineError(RuntimeError):
    """The engine cannot go on: a rank of it is lost. The message names the rank and how it ended."""
