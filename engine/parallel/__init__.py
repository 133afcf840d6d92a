"""Tensor parallelism: one model cut over several processes, each with a device of its own."""
