-- name: ml_reliability
-- arguments: n BIGINT (rows of the group), tau00 DOUBLE (variance between groups), sigma2 DOUBLE (variance within groups)
-- returns: DOUBLE in [0, 1]
-- summary: reliability of a group's mean, the weight of its own mean against the overall one
-- example: SELECT ml_reliability(10, 1.0, 2.0) -> 0.833333
CREATE OR REPLACE MACRO ml_reliability(n, tau00, sigma2) AS n * tau00 / (n * tau00 + sigma2);
COMMENT ON MACRO ml_reliability IS 'reliability of a group''s mean, the weight of its own mean against the overall one [mlsql]';
