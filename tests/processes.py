"""Processes of this machine as /proc has them."""


def is_running(pid: int) -> bool:
    """A process that has ended and is not yet collected does not run."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
