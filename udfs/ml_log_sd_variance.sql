-- name: ml_log_sd_variance
-- arguments: df BIGINT (degrees of freedom of the standard deviation)
-- returns: DOUBLE; NULL unless df > 0
-- summary: sampling variance of a log standard deviation
-- example: SELECT ml_log_sd_variance(50) -> 0.01
CREATE OR REPLACE MACRO ml_log_sd_variance(df) AS CASE WHEN df > 0 THEN 0.5 / df END;
COMMENT ON MACRO ml_log_sd_variance IS 'sampling variance of a log standard deviation [mlsql]';
