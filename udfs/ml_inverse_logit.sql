-- name: ml_inverse_logit
-- arguments: eta DOUBLE (log odds)
-- returns: DOUBLE in [0, 1]
-- summary: probability of given log odds
-- example: SELECT ml_inverse_logit(-1.386294) -> 0.2
CREATE OR REPLACE MACRO ml_inverse_logit(eta) AS
    CASE WHEN eta < 0 THEN exp(eta) / (1 + exp(eta)) ELSE 1 / (1 + exp(-eta)) END;
COMMENT ON MACRO ml_inverse_logit IS 'probability of given log odds [mlsql]';
