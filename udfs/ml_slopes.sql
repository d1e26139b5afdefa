-- name: ml_slopes
-- arguments: tbl TABLE (name of a table or view), y COLUMN (outcome, a column or an expression of columns), x COLUMN (predictor, not centred), g COLUMN (group)
-- returns: four rows: estimator (total: rows as if there were no groups; between: group means, each counted once; between_weighted: each counted by its rows; within: an intercept for each group), estimate, std_error, df, statistic (t), p_value, weight_in_total (of between_weighted and within: total is their weighted sum)
-- needs: ml_t_p
-- summary: one predictor's least-squares slope between, within and across groups, from one pass over the rows
-- example: SELECT estimate FROM ml_slopes('hsb', mathach, ses, school) WHERE estimator = 'within' -> 2.19117
CREATE OR REPLACE MACRO ml_slopes(tbl, y, x, g) AS TABLE
WITH measured AS (
    SELECT y::DOUBLE AS outcome, x::DOUBLE AS predictor, g AS grp FROM query_table(tbl)
), grouped AS (
    SELECT count(*) AS n, avg(predictor) AS mx, avg(outcome) AS my, regr_sxx(outcome, predictor) AS sxx,
           regr_sxy(outcome, predictor) AS sxy, regr_syy(outcome, predictor) AS syy
    FROM measured WHERE NOT isnan(outcome) AND NOT isnan(predictor) AND grp IS NOT NULL GROUP BY grp
), centres AS (
    SELECT sum(n * mx) / sum(n) AS cx, sum(n * my) / sum(n) AS cy FROM grouped
), pooled AS (
    SELECT sum(n)::BIGINT AS rows_, count(*) AS groups_, sum(sxx) AS wxx, sum(sxy) AS wxy, sum(syy) AS wyy,
           sum(n * power(mx - cx, 2)) AS bxx, sum(n * (mx - cx) * (my - cy)) AS bxy, sum(n * power(my - cy, 2)) AS byy,
           regr_sxx(my, mx) AS oxx, regr_sxy(my, mx) AS oxy, regr_syy(my, mx) AS oyy
    FROM grouped CROSS JOIN centres
), sums AS (
    SELECT unnest([
        {'place': 1, 'estimator': 'total', 'xx': wxx + bxx, 'xy': wxy + bxy, 'yy': wyy + byy, 'df': rows_ - 2,
         'share': NULL},
        {'place': 2, 'estimator': 'between', 'xx': oxx, 'xy': oxy, 'yy': oyy, 'df': groups_ - 2, 'share': NULL},
        {'place': 3, 'estimator': 'between_weighted', 'xx': bxx, 'xy': bxy, 'yy': byy, 'df': groups_ - 2,
         'share': bxx / nullif(wxx + bxx, 0)},
        {'place': 4, 'estimator': 'within', 'xx': wxx, 'xy': wxy, 'yy': wyy, 'df': rows_ - groups_ - 1,
         'share': wxx / nullif(wxx + bxx, 0)}
    ], recursive := true)
    FROM pooled
), lines AS (
    SELECT place, estimator, df, share, CASE WHEN xx > 0 THEN xy / xx END AS estimate,
           CASE WHEN xx > 0 AND df > 0 THEN sqrt(greatest(yy - xy / xx * xy, 0) / df / xx) END AS std_error
    FROM sums
)
SELECT estimator, estimate, std_error, greatest(df, 0) AS df, estimate / std_error AS statistic,
       ml_t_p(estimate / std_error, df) AS p_value, share AS weight_in_total
FROM lines ORDER BY place;
COMMENT ON MACRO TABLE ml_slopes IS 'one predictor''s least-squares slope between, within and across groups, from one pass over the rows [mlsql]';
