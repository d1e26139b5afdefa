"""Estimates and inference as frames and text."""
