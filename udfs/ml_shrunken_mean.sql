-- name: ml_shrunken_mean
-- arguments: mean DOUBLE (the group's own mean), n BIGINT (its rows), overall_mean DOUBLE (what the fixed effects predict for it), tau00 DOUBLE (variance between groups), sigma2 DOUBLE (variance within groups)
-- returns: DOUBLE, between the two means
-- summary: empirical-Bayes mean of a group, its own mean drawn towards the overall one by what the reliability lacks of 1
-- example: SELECT ml_shrunken_mean(9.715, 47, 12.637, 8.614, 39.148) -> 9.973
CREATE OR REPLACE MACRO ml_shrunken_mean(mean, n, overall_mean, tau00, sigma2) AS
    (n * tau00 * mean + sigma2 * overall_mean) / (n * tau00 + sigma2);
COMMENT ON MACRO ml_shrunken_mean IS 'empirical-Bayes mean of a group, its own mean drawn towards the overall one by what the reliability lacks of 1 [mlsql]';
