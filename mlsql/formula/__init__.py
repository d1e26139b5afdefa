"""Text to `ModelSpec`, and back to equations.  No data, no arrays."""
