"""Other engines in our cells: `experiments/peers/<kind>.py` drives one through the interface of adapter.py."""
