-- name: ml_deviance_p
-- arguments: smaller DOUBLE (deviance of the smaller model), larger DOUBLE (deviance of the model that contains it), df DOUBLE (parameters that it has more)
-- returns: DOUBLE in [0, 1]
-- needs: ml_chi_square_p
-- summary: p value of the likelihood-ratio test of two nested models; conservative when a variance is tested
-- example: SELECT ml_deviance_p(46720.4, 46714.2, 2) -> 0.045049
CREATE OR REPLACE MACRO ml_deviance_p(smaller, larger, df) AS ml_chi_square_p(smaller - larger, df);
COMMENT ON MACRO ml_deviance_p IS 'p value of the likelihood-ratio test of two nested models; conservative when a variance is tested [mlsql]';
