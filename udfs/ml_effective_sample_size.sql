-- name: ml_effective_sample_size
-- arguments: n_rows BIGINT (rows in all groups), design_effect DOUBLE (as ml_design_effect gives it)
-- returns: DOUBLE, at most n_rows
-- summary: how many independent rows would tell as much about the overall mean
-- example: SELECT ml_effective_sample_size(7185, 8.902) -> 807.1
CREATE OR REPLACE MACRO ml_effective_sample_size(n_rows, design_effect) AS n_rows / design_effect;
COMMENT ON MACRO ml_effective_sample_size IS 'how many independent rows would tell as much about the overall mean [mlsql]';
