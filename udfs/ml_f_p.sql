-- name: ml_f_p
-- arguments: statistic DOUBLE (F), df1 DOUBLE (degrees of freedom of the numerator), df2 DOUBLE (of the denominator)
-- returns: DOUBLE in [0, 1]; NULL unless both df are positive
-- summary: p value of an F, the probability of a larger one
-- example: SELECT ml_f_p(4.1, 2, 27) -> 0.027867
CREATE OR REPLACE MACRO ml_f_p(statistic, df1, df2) AS CASE
    WHEN df1 > 0 AND df2 > 0 AND statistic <= 0 THEN 1.0::DOUBLE
    WHEN df1 > 0 AND df2 > 0 AND statistic = 'Infinity'::DOUBLE THEN 0.0::DOUBLE
    WHEN df1 > 0 AND df2 > 0 THEN list_transform(
        -- the incomplete beta function I_x(a, b) where its continued fraction is quick, else 1 - I_1-x(b, a)
        [CASE WHEN df2 / (df2 + df1::DOUBLE * statistic) <= (df2 + 2) / (df1::DOUBLE + df2 + 4)
              THEN {'x': df2 / (df2 + df1::DOUBLE * statistic), 'a': df2 / 2, 'b': df1 / 2, 'start': 0.0, 'factor': 1.0}
              ELSE {'x': df1::DOUBLE * statistic / (df2 + df1::DOUBLE * statistic), 'a': df1 / 2, 'b': df2 / 2,
                    'start': 1.0, 'factor': -1.0} END],
        lambda v: v.start + v.factor
            * exp(df2 / 2 * ln(df2 / (df2 + df1::DOUBLE * statistic)) + df1 / 2 * ln(df1::DOUBLE * statistic / (df2 + df1::DOUBLE * statistic))
                  + lgamma(df1 / 2 + df2 / 2) - lgamma(df1 / 2) - lgamma(df2 / 2)) / v.a
            / (1 - (v.a + v.b) * v.x / (v.a + 1)
               / (1 + list_reduce(
                   [0.0::DOUBLE] || range(60 + 8 * ceil(sqrt(df1::DOUBLE + df2))::BIGINT, 0, -1)::DOUBLE[],
                   lambda t, m: m * (v.b - m) * v.x / ((v.a + 2 * m - 1) * (v.a + 2 * m))
                       / (1 - (v.a + m) * (v.a + v.b + m) * v.x / ((v.a + 2 * m) * (v.a + 2 * m + 1)) / (1 + t))
               )))
    )[1]
END;
COMMENT ON MACRO ml_f_p IS 'p value of an F, the probability of a larger one [mlsql]';
