-- name: ml_icc
-- arguments: tau00 DOUBLE (variance between groups), sigma2 DOUBLE (variance within groups)
-- returns: DOUBLE in [0, 1]
-- summary: intraclass correlation, the share of the variance that lies between groups
-- example: SELECT ml_icc(8.614, 39.148) -> 0.180353
CREATE OR REPLACE MACRO ml_icc(tau00, sigma2) AS tau00 / (tau00 + sigma2);
COMMENT ON MACRO ml_icc IS 'intraclass correlation, the share of the variance that lies between groups [mlsql]';
