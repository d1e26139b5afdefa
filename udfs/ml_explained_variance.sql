-- name: ml_explained_variance
-- arguments: base DOUBLE (variance in the model without the predictors), model DOUBLE (the same variance with them)
-- returns: DOUBLE, 1 or less; negative when the variance grew
-- summary: proportion of a variance component that added predictors explain
-- example: SELECT ml_explained_variance(8.614, 2.639) -> 0.694
CREATE OR REPLACE MACRO ml_explained_variance(base, model) AS (base - model) / base;
COMMENT ON MACRO ml_explained_variance IS 'proportion of a variance component that added predictors explain [mlsql]';
