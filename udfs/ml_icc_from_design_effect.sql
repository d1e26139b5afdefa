-- name: ml_icc_from_design_effect
-- arguments: n DOUBLE (mean rows per group), design_effect DOUBLE (variance of an overall mean, relative to simple random sampling)
-- returns: DOUBLE
-- summary: intraclass correlation that a published design effect implies, the inverse of ml_design_effect
-- example: SELECT ml_icc_from_design_effect(44.9, 8.902) -> 0.18
CREATE OR REPLACE MACRO ml_icc_from_design_effect(n, design_effect) AS (design_effect - 1) / (n - 1);
COMMENT ON MACRO ml_icc_from_design_effect IS 'intraclass correlation that a published design effect implies, the inverse of ml_design_effect [mlsql]';
