-- name: ml_deviance_mixture_p
-- arguments: smaller DOUBLE (deviance of the model without the random coefficient), larger DOUBLE (deviance of the model with it), df DOUBLE (parameters that it has more: its variance and covariances)
-- returns: DOUBLE in [0, 1]
-- needs: ml_chi_square_p
-- summary: p value of the likelihood-ratio test of one random coefficient, whose variance is 0 or more: equal parts of chi-square on df - 1 and on df
-- example: SELECT ml_deviance_mixture_p(46720.4, 46714.2, 2) -> 0.028912
CREATE OR REPLACE MACRO ml_deviance_mixture_p(smaller, larger, df) AS
    (ml_chi_square_p(smaller - larger, df - 1) + ml_chi_square_p(smaller - larger, df)) / 2;
COMMENT ON MACRO ml_deviance_mixture_p IS 'p value of the likelihood-ratio test of one random coefficient, whose variance is 0 or more: equal parts of chi-square on df - 1 and on df [mlsql]';
