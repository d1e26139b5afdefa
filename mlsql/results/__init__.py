"""What follows from an optimum: estimates, group effects, variance components.  Arrays, no SQL."""
