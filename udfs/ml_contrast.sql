-- name: ml_contrast
-- arguments: fit_id VARCHAR (as in ml_fits), weights MAP (term of the fixed part to its weight), level DOUBLE := 0.95 (of the interval), prefix VARCHAR := 'ml_' (of the result tables)
-- returns: one row: estimate, std_error, statistic (z), p_value, conf_low, conf_high
-- needs: ml_probit, ml_chi_square_p
-- summary: a weighted sum of the fixed effects of a stored fit, with its standard error: simple slopes, differences, crossovers
-- example: SELECT std_error FROM ml_contrast((SELECT fit_id FROM ml_fits), MAP {'(Intercept)': 1, 'sector': 1}) -> 0.2198
CREATE OR REPLACE MACRO ml_contrast(fit_id, weights, level := 0.95, prefix := 'ml_') AS TABLE
WITH asked AS (
    SELECT entry.key AS name, entry.value::DOUBLE AS weight FROM (SELECT unnest(map_entries(weights)) AS entry)
), terms AS (
    SELECT asked.name, asked.weight,
           CASE WHEN e.term IS NULL THEN error('the fit ' || coalesce(fit_id, 'NULL') || ' has no fixed effect '
                                               || asked.name || ' in ' || prefix || 'fixed_effects')
                ELSE e.estimate END AS effect
    FROM asked LEFT JOIN query_table(prefix || 'fixed_effects') AS e ON e.term = asked.name AND e.fit_id = fit_id
), squared AS (
    SELECT sum(a.weight * b.weight * v.covariance) AS variance
    FROM query_table(prefix || 'fixed_covariances') AS v
    JOIN terms AS a ON a.name = v.term1 JOIN terms AS b ON b.name = v.term2
    WHERE v.fit_id = fit_id
), answer AS (
    SELECT (SELECT sum(weight * effect) FROM terms) AS estimate, sqrt(if(variance < 0, 0, variance)) AS std_error
    FROM squared
)
SELECT estimate, std_error, estimate / std_error AS statistic,
       ml_chi_square_p(power(estimate / std_error, 2), 1) AS p_value,
       estimate - ml_probit((1 + level) / 2) * std_error AS conf_low,
       estimate + ml_probit((1 + level) / 2) * std_error AS conf_high
FROM answer;
COMMENT ON MACRO TABLE ml_contrast IS 'a weighted sum of the fixed effects of a stored fit, with its standard error: simple slopes, differences, crossovers [mlsql]';
