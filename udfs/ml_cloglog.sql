-- name: ml_cloglog
-- arguments: p DOUBLE (probability)
-- returns: DOUBLE; NULL unless 0 < p < 1
-- summary: complementary log-log of a probability, the log of the cumulative hazard
-- example: SELECT ml_cloglog(0.2) -> -1.499940
CREATE OR REPLACE MACRO ml_cloglog(p) AS
    -- for a small p, -ln(1 - p) as an area tangent keeps the digits
    CASE WHEN p > 0 AND p < 0.5 THEN ln(2 * atanh(p / (2 - p))) WHEN p >= 0.5 AND p < 1 THEN ln(-ln(1 - p)) END;
COMMENT ON MACRO ml_cloglog IS 'complementary log-log of a probability, the log of the cumulative hazard [mlsql]';
