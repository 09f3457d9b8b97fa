"""Objectives: what is minimised, each a pure function of tensors."""
