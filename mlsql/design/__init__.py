"""`ModelSpec` and what the data answered to `Design`: columns, positions, pivots.  No SQL is run here."""
