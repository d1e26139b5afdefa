-- Questions to the result tables of a fit, for any DuckDB client; no Python is needed here.
--
-- Make the tables once, then ask:
--
--     mlsql demo --into demo.duckdb
--     duckdb demo.duckdb < examples/sql.sql

-- The models, from the simplest to the best
SELECT row_number() OVER by_size AS model, n_parameters, round(deviance, 1) AS deviance,
       round(deviance - lag(deviance) OVER by_size, 1) AS change, round(sigma2, 2) AS within_schools, status
FROM ml_fits
WINDOW by_size AS (ORDER BY n_parameters, deviance DESC)
ORDER BY model;

-- Share of the variance between school means that the predictors of model 2 explain
SELECT round(1 - min(tau.estimate) / max(tau.estimate), 3) AS explained
FROM ml_variance_components AS tau JOIN ml_fits USING (fit_id)
WHERE tau.term1 = '(Intercept)' AND tau.term2 IS NULL AND ml_fits.n_covariance_parameters = 2;

-- Fixed effects of the largest model as a table to print
SELECT term, printf('%.2f (%.2f)', estimate, std_error) AS "estimate (s.e.)",
       CASE WHEN p_value < 0.001 THEN '***' WHEN p_value < 0.01 THEN '**' WHEN p_value < 0.05 THEN '*' ELSE '' END AS stars
FROM ml_fixed_effects
WHERE fit_id = (SELECT fit_id FROM ml_fits ORDER BY n_parameters DESC LIMIT 1);

-- How far shrinkage moves the slopes of the smallest and the largest schools
SELECT CASE WHEN n < 30 THEN 'below 30 pupils' WHEN n < 50 THEN '30 to 49' ELSE '50 and more' END AS school_size,
       count(*) AS schools, round(avg(reliability), 2) AS reliability,
       round(stddev(ols_coefficient), 2) AS sd_of_own_slopes, round(stddev(coefficient), 2) AS sd_of_eb_slopes
FROM ml_group_effects JOIN ml_fits USING (fit_id)
WHERE term = 'group_center(ses)' AND n_parameters = 6
GROUP BY school_size
ORDER BY min(n);

-- Schools whose mean is unusual for their status and sector: more than two and a half posterior standard errors away
SELECT key AS school, n, round(estimate, 2) AS beside_expected, round(coefficient, 2) AS eb_mean,
       round(estimate / std_error, 1) AS z
FROM ml_group_effects JOIN ml_fits USING (fit_id)
WHERE term = '(Intercept)' AND n_parameters = 10 AND abs(estimate / std_error) > 2.5
ORDER BY z DESC;
