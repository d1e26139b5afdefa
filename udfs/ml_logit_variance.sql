-- name: ml_logit_variance
-- arguments: p DOUBLE (proportion), n BIGINT (rows behind it)
-- returns: DOUBLE; NULL unless 0 < p < 1
-- summary: sampling variance of the log odds of a proportion
-- example: SELECT ml_logit_variance(0.2, 50) -> 0.125
CREATE OR REPLACE MACRO ml_logit_variance(p, n) AS CASE WHEN p > 0 AND p < 1 THEN 1 / (n * p * (1 - p)) END;
COMMENT ON MACRO ml_logit_variance IS 'sampling variance of the log odds of a proportion [mlsql]';
