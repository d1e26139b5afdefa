-- name: ml_coefficients
-- arguments: fit_id VARCHAR (as in ml_fits), level DOUBLE := 0.95 (of the intervals), prefix VARCHAR := 'ml_' (of the result tables)
-- returns: one row per group and random coefficient: group, key, term, n, fixed_part (what the fixed effects predict), effect (empirical-Bayes residual), coefficient (their sum), std_error, conf_low, conf_high; NULL but for effect and n in a fit with several grouping factors, where the effects of one group are no whole coefficient
-- needs: ml_probit
-- summary: the coefficients of every group of a stored fit
-- example: SELECT coefficient FROM ml_coefficients((SELECT fit_id FROM ml_fits)) WHERE key = '1224' AND term = '(Intercept)' -> 9.7397
CREATE OR REPLACE MACRO ml_coefficients(fit_id, level := 0.95, prefix := 'ml_') AS TABLE
WITH checked AS (
    SELECT CASE WHEN (SELECT count(*) FROM query_table(prefix || 'fits') AS f WHERE f.fit_id = fit_id) = 0
                THEN error('there is no fit ' || coalesce(fit_id, 'NULL') || ' in ' || prefix || 'fits; FROM ' || prefix
                           || 'fits shows which there are') END AS absent
), effects AS (
    SELECT * FROM query_table(prefix || 'group_effects') AS e WHERE e.fit_id = fit_id
)
SELECT "group", key, term, n, coefficient - estimate AS fixed_part, estimate AS effect, coefficient,
       coefficient_std_error AS std_error,
       coefficient - ml_probit((1 + level) / 2) * coefficient_std_error AS conf_low,
       coefficient + ml_probit((1 + level) / 2) * coefficient_std_error AS conf_high
FROM checked LEFT JOIN effects ON checked.absent IS NULL;
COMMENT ON MACRO TABLE ml_coefficients IS 'the coefficients of every group of a stored fit [mlsql]';
