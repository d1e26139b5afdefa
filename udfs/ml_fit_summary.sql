-- name: ml_fit_summary
-- arguments: fit_id VARCHAR (as in ml_fits), prefix VARCHAR := 'ml_' (of the result tables)
-- returns: one row per parameter: part (fixed, variance or statistic), group, term1, term2, estimate, std_error, statistic, df, p_value, conf_low, conf_high
-- summary: a stored fit at a glance: fixed effects, variance components, fit statistics
-- example: SELECT estimate FROM ml_fit_summary((SELECT fit_id FROM ml_fits)) WHERE term1 = 'sector' -> 1.3722
CREATE OR REPLACE MACRO ml_fit_summary(fit_id, prefix := 'ml_') AS TABLE
WITH fits AS (
    SELECT * FROM query_table(prefix || 'fits') AS f WHERE f.fit_id = fit_id
), checked AS (
    SELECT CASE WHEN (SELECT count(*) FROM fits) = 0
                THEN error('there is no fit ' || coalesce(fit_id, 'NULL') || ' in ' || prefix || 'fits; FROM ' || prefix
                           || 'fits shows which there are') END AS absent
), parts AS (
    SELECT 1 AS place, row_number() OVER () AS line, 'fixed' AS part, NULL AS "group", e.term AS term1, NULL AS term2,
           e.estimate, e.std_error, e.statistic, e.df::DOUBLE AS df, e.p_value, e.conf_low, e.conf_high
    FROM query_table(prefix || 'fixed_effects') AS e WHERE e.fit_id = fit_id
    UNION ALL
    SELECT 2, row_number() OVER (), 'variance', v."group", v.term1, v.term2,
           v.estimate, v.std_error, v.chi2, v.df::DOUBLE, v.p_value, v.conf_low, v.conf_high
    FROM query_table(prefix || 'variance_components') AS v WHERE v.fit_id = fit_id
    UNION ALL
    SELECT 3, generate_subscripts([1, 2, 3, 4, 5, 6, 7, 8], 1), 'statistic', NULL,
           unnest(['n_rows', 'n_groups', 'n_parameters', 'deviance', 'log_likelihood', 'aic', 'bic', 'icc']), NULL,
           unnest([n_rows, n_groups, n_parameters, deviance, log_likelihood, aic, bic, icc]::DOUBLE[]),
           NULL, NULL, NULL, NULL, NULL, NULL
    FROM fits
)
SELECT parts.* EXCLUDE (place, line) FROM checked LEFT JOIN parts ON checked.absent IS NULL ORDER BY place, line;
COMMENT ON MACRO TABLE ml_fit_summary IS 'a stored fit at a glance: fixed effects, variance components, fit statistics [mlsql]';
