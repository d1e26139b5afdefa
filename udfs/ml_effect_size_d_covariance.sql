-- name: ml_effect_size_d_covariance
-- arguments: d1 DOUBLE (standardized mean difference of outcome 1), d2 DOUBLE (of outcome 2), n1 BIGINT (rows of group 1), n2 BIGINT (rows of group 2), r DOUBLE (correlation of the two outcomes within groups)
-- returns: DOUBLE
-- summary: sampling covariance of two standardized mean differences of the same two groups
-- example: SELECT ml_effect_size_d_covariance(0.3746, 0.25, 25, 35, 0.66) -> 0.045597
CREATE OR REPLACE MACRO ml_effect_size_d_covariance(d1, d2, n1, n2, r) AS
    r * (1.0 / n1 + 1.0 / n2) + power(r, 2) * d1 * d2 / 2 / (n1::DOUBLE + n2);
COMMENT ON MACRO ml_effect_size_d_covariance IS 'sampling covariance of two standardized mean differences of the same two groups [mlsql]';
