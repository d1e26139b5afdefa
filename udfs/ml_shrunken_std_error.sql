-- name: ml_shrunken_std_error
-- arguments: n BIGINT (rows of the group), tau00 DOUBLE (variance between groups), sigma2 DOUBLE (variance within groups), overall_std_error DOUBLE (standard error of the overall mean; 0 when it is known)
-- returns: DOUBLE
-- summary: posterior standard deviation of ml_shrunken_mean, the uncertainty of the overall mean included
-- example: SELECT ml_shrunken_std_error(47, 8.614, 39.148, 0.244) -> 0.872
CREATE OR REPLACE MACRO ml_shrunken_std_error(n, tau00, sigma2, overall_std_error) AS
    sqrt(tau00 * sigma2 / (n * tau00 + sigma2) + power(sigma2 / (n * tau00 + sigma2) * overall_std_error, 2));
COMMENT ON MACRO ml_shrunken_std_error IS 'posterior standard deviation of ml_shrunken_mean, the uncertainty of the overall mean included [mlsql]';
