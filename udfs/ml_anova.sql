-- name: ml_anova
-- arguments: tbl TABLE (name of a table or view), y COLUMN (outcome, a column or an expression of columns), g COLUMN (group)
-- returns: one row: n_rows, n_groups, n0 (rows of a typical group), mean, ms_between, df_between, df_within, statistic (F), p_value, tau00 (0 where groups differ less than noise explains), sigma2 (mean square within), icc
-- needs: ml_f_p
-- summary: one-way random-effects analysis of variance, components by the method of moments, groups of any size
-- example: SELECT tau00 FROM ml_anova('hsb', mathach, school) -> 8.2224
CREATE OR REPLACE MACRO ml_anova(tbl, y, g) AS TABLE
WITH measured AS (
    SELECT y::DOUBLE AS outcome, g AS grp FROM query_table(tbl)
), grouped AS (
    SELECT count(*) AS n, avg(outcome) AS mean, var_pop(outcome) * count(*) AS ss
    FROM measured WHERE NOT isnan(outcome) AND grp IS NOT NULL GROUP BY grp
), pooled AS (
    SELECT sum(n)::BIGINT AS n_rows, count(*) AS n_groups, sum(n * mean) / sum(n) AS mean, sum(ss) AS ss_within,
           (sum(n) - sum(n * n) / sum(n)) / nullif(count(*) - 1, 0) AS n0
    FROM grouped
), spread AS (
    SELECT any_value(pooled) AS p, sum(n * power(grouped.mean - pooled.mean, 2)) AS ss_between
    FROM grouped CROSS JOIN pooled
), squares AS (
    SELECT p.n_rows, p.n_groups, p.n0, p.mean,
           ss_between / nullif(p.n_groups - 1, 0) AS ms_between, p.n_groups - 1 AS df_between,
           p.ss_within / nullif(p.n_rows - p.n_groups, 0) AS ms_within, p.n_rows - p.n_groups AS df_within
    FROM spread
), components AS (
    SELECT *, greatest((ms_between - ms_within) / n0, 0) AS tau00 FROM squares
    WHERE n_rows > 0
)
SELECT n_rows, n_groups, n0, mean, ms_between, df_between, df_within, ms_between / ms_within AS statistic,
       ml_f_p(ms_between / ms_within, df_between, df_within) AS p_value,
       CASE WHEN ms_between IS NOT NULL AND ms_within IS NOT NULL THEN tau00 END AS tau00, ms_within AS sigma2,
       CASE WHEN ms_between IS NOT NULL AND ms_within IS NOT NULL THEN tau00 / (tau00 + ms_within) END AS icc
FROM components;
COMMENT ON MACRO TABLE ml_anova IS 'one-way random-effects analysis of variance, components by the method of moments, groups of any size [mlsql]';
