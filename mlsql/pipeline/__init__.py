"""Where text, engine and arrays meet: each public verb is one module."""
