"""Front doors that forward to the pipeline and hold no statistics."""
