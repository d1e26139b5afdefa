-- name: ml_chi_square_p
-- arguments: statistic DOUBLE (chi-square), df DOUBLE (degrees of freedom, whole or not)
-- returns: DOUBLE in [0, 1]; NULL for negative df
-- summary: p value of a chi-square, the probability of a larger one
-- example: SELECT ml_chi_square_p(3.841458820694, 1) -> 0.05
CREATE OR REPLACE MACRO ml_chi_square_p(statistic, df) AS CASE
    WHEN statistic <= 0 AND df >= 0 THEN 1.0::DOUBLE
    WHEN df = 0 OR df > 0 AND statistic = 'Infinity'::DOUBLE THEN 0.0::DOUBLE
    -- below the mean: 1 - the series of the lower tail, from its last term back
    WHEN df > 0 AND statistic < df + 2 THEN
        1 - exp(df / 2 * ln(statistic / 2) - statistic / 2 - lgamma(df / 2 + 1))
        * list_reduce([1.0::DOUBLE] || range(60 + 8 * ceil(sqrt(df))::BIGINT, 0, -1)::DOUBLE[],
                      lambda t, k: 1 + t * statistic / (df + 2 * k))
    -- above it: the continued fraction of the upper tail, from its last term back
    WHEN df > 0 THEN
        exp(df / 2 * ln(statistic / 2) - statistic / 2 - lgamma(df / 2))
        / (statistic / 2 + 1 - df / 2
           - list_reduce([0.0::DOUBLE] || range(60 + 8 * ceil(sqrt(df))::BIGINT, 0, -1)::DOUBLE[],
                         lambda t, k: k * (k - df / 2) / (statistic / 2 + 2 * k + 1 - df / 2 - t)))
END;
COMMENT ON MACRO ml_chi_square_p IS 'p value of a chi-square, the probability of a larger one [mlsql]';
