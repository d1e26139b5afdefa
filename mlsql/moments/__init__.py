"""Aggregates as arrays: the engine's answer to `Moments`, and `Moments` to the statistics of one model."""
