"""Profile-likelihood intervals of fixed effects."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from mlsql._arrays import Array
from mlsql.inference.fixed_effects import check_level
from mlsql.inference.roots import upper_end
from mlsql.likelihood.covariance import Covariance
from mlsql.likelihood.objective import make_deviance
from mlsql.moments.constrained import constrained
from mlsql.optimise.search import optimise
from mlsql.results.estimates import Estimates


def profile_fixed(estimates: Estimates, level: float = 0.95) -> tuple[Array, Array, Array]:
    """Estimates and both ends of the profile interval of every fixed effect.

    The full likelihood, whatever the fit's method: a restricted likelihood is not one of the fixed effects, so that a
    REML fit is fitted by ML here, as lme4 does.  For each end all other parameters, the variance components among them,
    are fitted anew until the deviance has risen by the chi-square quantile.

    Returns
    -------
    estimate, low, high : (p,)
        ML estimates and ends, user columns.
    """
    check_level(level)
    stats, z = estimates.statistics, float(ndtri(0.5 + level / 2.0))
    covariance = Covariance(stats.blocks)
    start = None if estimates.singular else covariance.theta(estimates.L)
    best = optimise(make_deviance(stats, "ML"), start=start)
    start = None if best.singular else best.theta
    beta = stats.user_beta(best.evaluation.beta)
    back = stats.beta_transform
    error = np.sqrt(np.diag(back @ best.evaluation.beta_covariance @ back.T))
    ends = np.empty((2, stats.p))
    for f in range(stats.p):
        shift = stats.y_shift if f == stats.intercept else 0.0

        def rise(value: float, f: int = f, shift: float = shift) -> float:
            held = constrained(stats, back[f], value - shift)
            return optimise(make_deviance(held, "ML"), start=start).evaluation.deviance - best.evaluation.deviance

        for side, sign in enumerate((-1.0, 1.0)):
            ends[side, f] = upper_end(rise, float(beta[f]), sign * z * float(error[f]), sign * np.inf, z)
    return beta, ends[0], ends[1]
