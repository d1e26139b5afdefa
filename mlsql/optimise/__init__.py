"""Minimisation of the deviance: Newton steps inside a trust region, and exact treatment of the boundary."""
