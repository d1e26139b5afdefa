-- name: ml_hedges_g
-- arguments: d DOUBLE (standardized mean difference), n1 BIGINT (rows of group 1), n2 BIGINT (rows of group 2)
-- returns: DOUBLE, nearer to 0 than d
-- summary: standardized mean difference with the small-sample bias of d removed
-- example: SELECT ml_hedges_g(0.3746, 25, 35) -> 0.3697
CREATE OR REPLACE MACRO ml_hedges_g(d, n1, n2) AS d * (1 - 3 / (4 * (n1::DOUBLE + n2 - 2) - 1));
COMMENT ON MACRO ml_hedges_g IS 'standardized mean difference with the small-sample bias of d removed [mlsql]';
