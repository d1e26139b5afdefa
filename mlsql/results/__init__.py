"""What follows from an optimum: estimates, group effects, tests, tables, text.  Arrays and frames, no SQL."""
