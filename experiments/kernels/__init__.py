"""One kernel at a time: `fusebench kernels`. See experiments/kernels/command.py."""
