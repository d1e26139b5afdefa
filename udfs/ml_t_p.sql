-- name: ml_t_p
-- arguments: statistic DOUBLE (t), df DOUBLE (degrees of freedom)
-- returns: DOUBLE in [0, 1]; NULL unless df is positive
-- needs: ml_f_p
-- summary: two-sided p value of a t
-- example: SELECT ml_t_p(2.1, 30) -> 0.044242
CREATE OR REPLACE MACRO ml_t_p(statistic, df) AS ml_f_p(power(statistic, 2), 1, df);
COMMENT ON MACRO ml_t_p IS 'two-sided p value of a t [mlsql]';
