-- name: ml_inverse_probit
-- arguments: eta DOUBLE (standard normal value)
-- returns: DOUBLE in [0, 1]
-- needs: ml_chi_square_p
-- summary: standard normal distribution function, the probability below a value
-- example: SELECT ml_inverse_probit(1.959963984540) -> 0.975
CREATE OR REPLACE MACRO ml_inverse_probit(eta) AS
    CASE WHEN eta < 0 THEN ml_chi_square_p(eta * eta, 1) / 2 ELSE 1 - ml_chi_square_p(eta * eta, 1) / 2 END;
COMMENT ON MACRO ml_inverse_probit IS 'standard normal distribution function, the probability below a value [mlsql]';
