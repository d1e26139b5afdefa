-- name: ml_effect_size_d_variance
-- arguments: d DOUBLE (standardized mean difference), n1 BIGINT (rows of group 1), n2 BIGINT (rows of group 2)
-- returns: DOUBLE
-- summary: sampling variance of a standardized mean difference
-- example: SELECT ml_effect_size_d_variance(0.3746, 25, 35) -> 0.069741
CREATE OR REPLACE MACRO ml_effect_size_d_variance(d, n1, n2) AS 1.0 / n1 + 1.0 / n2 + power(d, 2) / 2 / (n1::DOUBLE + n2);
COMMENT ON MACRO ml_effect_size_d_variance IS 'sampling variance of a standardized mean difference [mlsql]';
