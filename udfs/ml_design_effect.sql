-- name: ml_design_effect
-- arguments: n DOUBLE (mean rows per group), icc DOUBLE (intraclass correlation)
-- returns: DOUBLE, 1 or more
-- summary: how much larger the variance of an overall mean is than under simple random sampling
-- example: SELECT ml_design_effect(44.9, 0.18) -> 8.902
CREATE OR REPLACE MACRO ml_design_effect(n, icc) AS 1 + (n - 1) * icc;
COMMENT ON MACRO ml_design_effect IS 'how much larger the variance of an overall mean is than under simple random sampling [mlsql]';
