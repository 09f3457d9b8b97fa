"""A run on other hardware, on paper: parameters, memory, FLOPs, bytes between GPUs, time and cost, computed from the recipe."""
