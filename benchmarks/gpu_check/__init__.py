"""What only a GPU can show, as one prepared command of less than nine minutes: ``make gpu-check``."""
