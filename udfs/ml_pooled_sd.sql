-- name: ml_pooled_sd
-- arguments: sd1 DOUBLE (standard deviation of group 1), n1 BIGINT (its rows), sd2 DOUBLE (of group 2), n2 BIGINT (its rows)
-- returns: DOUBLE
-- summary: standard deviation within two groups, pooled by their degrees of freedom
-- example: SELECT ml_pooled_sd(10.0, 25, 12.0, 35) -> 11.216
CREATE OR REPLACE MACRO ml_pooled_sd(sd1, n1, sd2, n2) AS
    sqrt(((n1 - 1) * power(sd1, 2) + (n2 - 1) * power(sd2, 2)) / (n1::DOUBLE + n2 - 2));
COMMENT ON MACRO ml_pooled_sd IS 'standard deviation within two groups, pooled by their degrees of freedom [mlsql]';
