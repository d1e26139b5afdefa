-- name: ml_score
-- arguments: fit_id VARCHAR (as in ml_fits), tbl TABLE (with columns row_id, key, term, value: one line for each row and term of the model), prefix VARCHAR := 'ml_' (of the result tables)
-- returns: one row per row_id: row_id, key, seen (the fit had the group), population, population_std_error, conditional, conditional_std_error; NULL where a term is missing, NULL, NaN or there twice
-- summary: predictions of a stored fit and their standard errors, for groups that it saw and for new ones
-- example: SELECT population FROM ml_score((SELECT fit_id FROM ml_fits), 'new_rows') WHERE row_id = 1 -> 16.0273
CREATE OR REPLACE MACRO ml_score(fit_id, tbl, prefix := 'ml_') AS TABLE
WITH checked AS (
    SELECT CASE WHEN (SELECT count(*) FROM query_table(prefix || 'fits') AS f WHERE f.fit_id = fit_id) = 0
                THEN error('there is no fit ' || coalesce(fit_id, 'NULL') || ' in ' || prefix || 'fits; FROM ' || prefix
                           || 'fits shows which there are')
                WHEN (SELECT count(DISTINCT v."group") FROM query_table(prefix || 'variance_components') AS v
                      WHERE v.fit_id = fit_id AND v.term1 IS NOT NULL) > 1
                     OR (SELECT count(*) FROM query_table(prefix || 'terms') AS t
                         WHERE t.fit_id = fit_id AND t.part = 'key' AND t.in_table = 'membership') > 0
                THEN error('the fit ' || fit_id || ' has several grouping factors or a membership, and ml_score knows '
                           || 'one group of each row; use Fit.predict') END AS absent
), fixed AS (
    SELECT e.term AS name, e.estimate AS beta, row_number() OVER (ORDER BY e.term) AS place
    FROM query_table(prefix || 'fixed_effects') AS e WHERE e.fit_id = fit_id
), effects AS (
    -- a row's values stand in one list: those of the p fixed effects, of the q random ones, and of offsets
    SELECT 'fixed' AS effect, name, place FROM fixed
    UNION ALL
    SELECT 'random', v.term1, (SELECT count(*) FROM fixed) + row_number() OVER (ORDER BY v.term1)
    FROM query_table(prefix || 'variance_components') AS v
    WHERE v.fit_id = fit_id AND v.term1 IS NOT NULL AND v.term2 IS NULL
    UNION ALL
    SELECT 'offset', 'offset(' || t.term || ')', 1000000 + t.position
    FROM query_table(prefix || 'terms') AS t WHERE t.fit_id = fit_id AND t.part = 'offset'
), model AS (
    SELECT count(*) FILTER (effect = 'fixed') AS p, count(*) FILTER (effect = 'random') AS q,
           list(place ORDER BY place) AS every_place,
           (SELECT list(beta ORDER BY place) FROM fixed) AS beta
    FROM effects
), covariances AS (
    -- of the errors: among fixed effects; with and among the effects of a group of the fit; and those of a new group
    SELECT 'all' AS scope, NULL AS grp, 'fixed' AS effect1, v.term1, 'fixed' AS effect2, v.term2, v.covariance
    FROM query_table(prefix || 'fixed_covariances') AS v WHERE v.fit_id = fit_id
    UNION ALL
    SELECT 'seen', v.key, v.effect1, v.term1, v.effect2, v.term2, v.covariance
    FROM query_table(prefix || 'group_covariances') AS v WHERE v.fit_id = fit_id
    UNION ALL
    SELECT 'new', NULL, 'random', v.term1, 'random', coalesce(v.term2, v.term1), v.estimate
    FROM query_table(prefix || 'variance_components') AS v WHERE v.fit_id = fit_id AND v.term1 IS NOT NULL
), pairs AS (
    -- each once, whether the table holds it in one order or in both
    SELECT c.scope, c.grp, least(a.place, b.place) AS place1, greatest(a.place, b.place) AS place2,
           any_value(c.covariance * CASE WHEN a.place = b.place THEN 1 ELSE 2 END) AS share
    FROM covariances AS c
    JOIN effects AS a ON a.effect = c.effect1 AND a.name = c.term1
    JOIN effects AS b ON b.effect = c.effect2 AND b.name = c.term2
    GROUP BY c.scope, c.grp, place1, place2
), spreads AS (
    SELECT scope, grp, list({'place1': place1, 'place2': place2, 'share': share}) AS spread FROM pairs
    GROUP BY scope, grp
), groups AS (
    SELECT g.key AS grp, list(g.estimate ORDER BY effects.place) AS u, any_value(spreads.spread) AS spread
    FROM query_table(prefix || 'group_effects') AS g JOIN effects ON effects.effect = 'random' AND effects.name = g.term
    LEFT JOIN spreads ON spreads.scope = 'seen' AND spreads.grp = g.key
    WHERE g.fit_id = fit_id GROUP BY g.key
), lines AS (
    SELECT t.row_id, t.key::VARCHAR AS grp, t.term AS name, nullif(t.value::DOUBLE, 'NaN'::DOUBLE) AS value
    FROM query_table(tbl) AS t
), completed AS (
    -- the intercept need not be given
    FROM lines WHERE name <> '(Intercept)'
    UNION ALL
    SELECT DISTINCT row_id, grp, '(Intercept)', 1.0::DOUBLE FROM lines
), gathered AS (
    SELECT row_id, grp, list(value ORDER BY place) FILTER (place IS NOT NULL) AS w,
           list(place ORDER BY place) FILTER (place IS NOT NULL AND value IS NOT NULL) AS places
    FROM completed LEFT JOIN effects USING (name) GROUP BY row_id, grp
), scored AS (
    SELECT row_id, gathered.grp, w, p, q, beta, groups.grp IS NOT NULL AS seen, u,
           places IS NOT DISTINCT FROM every_place AS usable,
           (SELECT spread FROM spreads WHERE scope = 'all') AS shared,
           CASE WHEN groups.grp IS NULL THEN (SELECT spread FROM spreads WHERE scope = 'new')
                WHEN len(groups.spread) = p * q + q * (q + 1) // 2 THEN groups.spread END AS own
    FROM checked JOIN gathered ON checked.absent IS NULL CROSS JOIN model LEFT JOIN groups ON groups.grp = gathered.grp
), summed AS (
    SELECT row_id, grp, seen,
           CASE WHEN usable THEN list_dot_product(w[:p], beta) + coalesce(list_sum(w[p + q + 1:]), 0) END AS population,
           CASE WHEN usable AND NOT seen THEN 0 WHEN usable THEN list_dot_product(w[p + 1:p + q], u) END AS effect,
           CASE WHEN usable AND len(shared) = p * (p + 1) // 2
                THEN list_sum(list_transform(shared, lambda s: s.share * w[s.place1] * w[s.place2])) END AS variance,
           CASE WHEN usable
                THEN list_sum(list_transform(own, lambda s: s.share * w[s.place1] * w[s.place2])) END AS added
    FROM scored
)
SELECT row_id, grp AS key, seen, population, sqrt(if(variance < 0, 0, variance)) AS population_std_error,
       population + effect AS conditional,
       sqrt(if(variance + added < 0, 0, variance + added)) AS conditional_std_error
FROM summed;
COMMENT ON MACRO TABLE ml_score IS 'predictions of a stored fit and their standard errors, for groups that it saw and for new ones [mlsql]';
