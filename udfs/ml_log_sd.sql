-- name: ml_log_sd
-- arguments: sd DOUBLE (standard deviation of a group), df BIGINT (its degrees of freedom: n - 1, or n - p for residuals of p coefficients)
-- returns: DOUBLE; NULL unless sd > 0 and df > 0
-- summary: log standard deviation, bias corrected: an outcome for models of dispersion
-- example: SELECT ml_log_sd(6.2, 44) -> 1.835913
CREATE OR REPLACE MACRO ml_log_sd(sd, df) AS CASE WHEN sd > 0 AND df > 0 THEN ln(sd) + 0.5 / df END;
COMMENT ON MACRO ml_log_sd IS 'log standard deviation, bias corrected: an outcome for models of dispersion [mlsql]';
