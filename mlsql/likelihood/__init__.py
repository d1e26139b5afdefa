"""Functions of the variance components: the Gaussian deviance and its derivatives from group moments alone."""
