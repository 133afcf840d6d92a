"""`fusebench trace`: cells under a profiler, read into kernel ledgers. See experiments/trace/command.py."""
