-- name: ml_inverse_fisher_z
-- arguments: z DOUBLE (Fisher's z)
-- returns: DOUBLE in [-1, 1]
-- summary: correlation of a given Fisher's z
-- example: SELECT ml_inverse_fisher_z(0.549306) -> 0.5
CREATE OR REPLACE MACRO ml_inverse_fisher_z(z) AS tanh(z);
COMMENT ON MACRO ml_inverse_fisher_z IS 'correlation of a given Fisher''s z [mlsql]';
