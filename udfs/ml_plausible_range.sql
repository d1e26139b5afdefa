-- name: ml_plausible_range
-- arguments: mean DOUBLE (average coefficient), tau DOUBLE (its variance between groups), level DOUBLE := 0.95 (share of the groups that the range holds)
-- returns: STRUCT(low DOUBLE, high DOUBLE)
-- needs: ml_probit
-- summary: range in which the coefficients of that share of the groups lie
-- example: SELECT ml_plausible_range(12.637, 8.614).low -> 6.885
CREATE OR REPLACE MACRO ml_plausible_range(mean, tau, level := 0.95) AS {
    'low': mean - ml_probit((1 + level) / 2) * sqrt(tau),
    'high': mean + ml_probit((1 + level) / 2) * sqrt(tau)
};
COMMENT ON MACRO ml_plausible_range IS 'range in which the coefficients of that share of the groups lie [mlsql]';
