"""Adapters: what training changed beyond a named base, as a small folder, in PEFT's format where PEFT can hold it."""
