"""Jobs for worker processes that behave and misbehave; light, since every worker imports this."""

import os
import time


def behave(job: str) -> None:
    """`fail` raises, `die` ends the process, `hang` does not end, `slow` takes half a second; all else is done."""
    if job.startswith("fail"):
        raise ValueError(f"no such tile: {job}")
    if job.startswith("die"):
        os._exit(7)
    if job.startswith("hang"):
        time.sleep(600)
    if job.startswith("slow"):
        time.sleep(0.5)
