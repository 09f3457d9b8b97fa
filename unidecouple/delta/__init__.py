"""What fine-tuning changed between two checkpoints of one model: measured (``guard``) and undone for one task (``decouple``)."""
