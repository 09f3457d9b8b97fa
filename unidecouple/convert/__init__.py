"""Checkpoints in and out: deepseek-ai's layout of Janus, transformers' and ours; dense to mixture; one task out of two.

A checkpoint is read in small parts (a decoder layer, or one module elsewhere). What becomes of a part is a pure function of its
tensors. It runs twice: on tensors without data, which tells every name and shape of the result before a byte is written, and on
the real ones, part by part, while the result is written shard by shard.
"""
