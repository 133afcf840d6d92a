"""What a worker does with an engine: verify its answers, then time it. Runs in worker processes only."""
