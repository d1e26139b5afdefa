-- name: ml_effect_size_d
-- arguments: mean1 DOUBLE (experimental group), mean2 DOUBLE (control group), sd DOUBLE (standard deviation within groups)
-- returns: DOUBLE
-- summary: standardized mean difference of two groups
-- example: SELECT ml_effect_size_d(104.2, 100.0, 11.216) -> 0.3745
CREATE OR REPLACE MACRO ml_effect_size_d(mean1, mean2, sd) AS (mean1 - mean2) / sd;
COMMENT ON MACRO ml_effect_size_d IS 'standardized mean difference of two groups [mlsql]';
