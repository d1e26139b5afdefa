-- name: ml_caterpillar
-- arguments: fit_id VARCHAR (as in ml_fits), term VARCHAR (random coefficient), level DOUBLE := 0.95 (of the intervals), prefix VARCHAR := 'ml_' (of the result tables), factor VARCHAR := NULL (the grouping factor, where the coefficient varies over several)
-- returns: one row per group in rising order: rank, key, n, estimate (empirical-Bayes residual), std_error, conf_low, conf_high, excludes_zero (the interval does)
-- needs: ml_probit
-- summary: group effects of one coefficient of a stored fit, sorted, with intervals: the table behind a caterpillar plot
-- example: SELECT count(*) FROM ml_caterpillar((SELECT fit_id FROM ml_fits), '(Intercept)') WHERE excludes_zero -> 39
CREATE OR REPLACE MACRO ml_caterpillar(fit_id, term, level := 0.95, prefix := 'ml_', factor := NULL) AS TABLE
WITH effects AS (
    SELECT e."group" AS grouped, e.key, e.n, e.estimate, e.std_error,
           ml_probit((1 + level) / 2) * e.std_error AS width
    FROM query_table(prefix || 'group_effects') AS e
    WHERE e.fit_id = fit_id AND e.term = term AND (factor IS NULL OR e."group" = factor)
), checked AS (
    SELECT CASE WHEN (SELECT count(*) FROM effects) = 0
                THEN error('the fit ' || coalesce(fit_id, 'NULL') || ' has no random coefficient '
                           || coalesce(term, 'NULL') || coalesce(' of ' || factor, '') || ' in ' || prefix
                           || 'group_effects')
                WHEN (SELECT count(DISTINCT grouped) FROM effects) > 1
                THEN error('in the fit ' || fit_id || ' ' || term || ' varies over several grouping factors; name one: '
                           || 'factor := ''' || (SELECT min(grouped) FROM effects) || '''') END AS absent
)
SELECT row_number() OVER (ORDER BY estimate, key) AS rank, key, n, estimate, std_error,
       estimate - width AS conf_low, estimate + width AS conf_high, abs(estimate) > width AS excludes_zero
FROM checked LEFT JOIN effects ON checked.absent IS NULL
ORDER BY rank;
COMMENT ON MACRO TABLE ml_caterpillar IS 'group effects of one coefficient of a stored fit, sorted, with intervals: the table behind a caterpillar plot [mlsql]';
