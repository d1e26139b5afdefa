-- name: ml_group_regressions
-- arguments: tbl TABLE (name of a table or view), y COLUMN (outcome, a column or an expression of columns), x COLUMN (predictor), g COLUMN (group)
-- returns: one row per group: key, n, mean_x, mean_y, intercept (at x = 0), slope, slope_std_error, residual_sd, df (n - 2); NULL where x does not vary, the errors also where n < 3
-- summary: least-squares line of each group by itself, nothing pooled
-- example: SELECT slope FROM ml_group_regressions('hsb', mathach, ses, school) WHERE key = '1224' -> 2.5086
CREATE OR REPLACE MACRO ml_group_regressions(tbl, y, x, g) AS TABLE
WITH measured AS (
    SELECT y::DOUBLE AS outcome, x::DOUBLE AS predictor, g AS grp FROM query_table(tbl)
), grouped AS (
    SELECT grp AS key, count(*) AS n, avg(predictor) AS mean_x, avg(outcome) AS mean_y,
           nullif(regr_sxx(outcome, predictor), 0) AS xx, regr_sxy(outcome, predictor) AS xy,
           regr_syy(outcome, predictor) AS yy
    FROM measured WHERE NOT isnan(outcome) AND NOT isnan(predictor) AND grp IS NOT NULL GROUP BY grp
), lines AS (
    SELECT *, xy / xx AS slope,
           CASE WHEN n > 2 THEN sqrt(if(yy < xy / xx * xy, 0, yy - xy / xx * xy) / (n - 2)) END AS residual_sd
    FROM grouped
)
SELECT key, n, mean_x, mean_y, mean_y - slope * mean_x AS intercept, slope, residual_sd / sqrt(xx) AS slope_std_error,
       residual_sd, greatest(n - 2, 0) AS df
FROM lines ORDER BY key;
COMMENT ON MACRO TABLE ml_group_regressions IS 'least-squares line of each group by itself, nothing pooled [mlsql]';
