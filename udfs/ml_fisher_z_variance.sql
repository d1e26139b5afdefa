-- name: ml_fisher_z_variance
-- arguments: n BIGINT (pairs behind the correlation)
-- returns: DOUBLE; NULL for 3 pairs or fewer
-- summary: sampling variance of Fisher's z
-- example: SELECT ml_fisher_z_variance(53) -> 0.02
CREATE OR REPLACE MACRO ml_fisher_z_variance(n) AS CASE WHEN n > 3 THEN 1 / (n - 3) END;
COMMENT ON MACRO ml_fisher_z_variance IS 'sampling variance of Fisher''s z [mlsql]';
