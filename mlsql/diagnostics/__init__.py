"""How far the model may be trusted: residuals, influence, comparators, explained variance.  Arrays, no SQL."""
