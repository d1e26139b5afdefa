-- name: ml_logit
-- arguments: p DOUBLE (probability or proportion)
-- returns: DOUBLE; NULL unless 0 < p < 1
-- summary: log odds
-- example: SELECT ml_logit(0.2) -> -1.386294
CREATE OR REPLACE MACRO ml_logit(p) AS CASE WHEN p > 0 AND p < 1 THEN ln(p / (1 - p)) END;
COMMENT ON MACRO ml_logit IS 'log odds [mlsql]';
