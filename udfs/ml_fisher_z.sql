-- name: ml_fisher_z
-- arguments: r DOUBLE (correlation)
-- returns: DOUBLE; NULL unless -1 < r < 1
-- summary: Fisher's z of a correlation
-- example: SELECT ml_fisher_z(0.5) -> 0.549306
CREATE OR REPLACE MACRO ml_fisher_z(r) AS CASE WHEN r > -1 AND r < 1 THEN atanh(r) END;
COMMENT ON MACRO ml_fisher_z IS 'Fisher''s z of a correlation [mlsql]';
