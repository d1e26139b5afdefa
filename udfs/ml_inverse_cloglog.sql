-- name: ml_inverse_cloglog
-- arguments: eta DOUBLE (log of the cumulative hazard)
-- returns: DOUBLE in [0, 1]
-- summary: probability of a given complementary log-log
-- example: SELECT ml_inverse_cloglog(-1.499940) -> 0.2
CREATE OR REPLACE MACRO ml_inverse_cloglog(eta) AS
    -- 1 - exp(-v) as a hyperbolic sine keeps the digits of a small probability
    CASE WHEN eta < 0 THEN 2 * exp(-exp(eta) / 2) * sinh(exp(eta) / 2) ELSE 1 - exp(-exp(eta)) END;
COMMENT ON MACRO ml_inverse_cloglog IS 'probability of a given complementary log-log [mlsql]';
