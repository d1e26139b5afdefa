-- name: ml_score_sql
-- arguments: fit_id VARCHAR (as in ml_fits), tbl VARCHAR (table or view with the columns of the model, or a query in parentheses), row_id VARCHAR (column or expression that tells its rows apart), prefix VARCHAR := 'ml_' (of the result tables)
-- returns: VARCHAR, a statement for query()
-- needs: ml_score
-- summary: the statement that scores the rows of a table with ml_score, every term of the model computed from their columns
-- example: SELECT ml_score_sql((SELECT fit_id FROM ml_fits), 'hsb', 'school') LIKE 'WITH mlsql_lines AS (SELECT school AS row_id%' -> True
CREATE OR REPLACE MACRO ml_score_sql(fit_id, tbl, row_id, prefix := 'ml_') AS (
    WITH terms AS (
        SELECT t.part, t.position, t.in_table, if(t.part = 'offset', 'offset(' || t.term || ')', t.term) AS name, t.sql
        FROM query_table(prefix || 'terms') AS t WHERE t.fit_id = fit_id
    ), keys AS (
        -- several key columns make one text, as in the result tables: ["DE", "17"]
        SELECT CASE WHEN count(*) = 0
                    THEN error('there is no fit ' || coalesce(fit_id, 'NULL') || ' in ' || prefix || 'terms; FROM '
                               || prefix || 'fits shows which there are')
                    WHEN (SELECT count(DISTINCT v."group") FROM query_table(prefix || 'variance_components') AS v
                          WHERE v.fit_id = fit_id AND v.term1 IS NOT NULL) > 1
                         OR count(*) FILTER (in_table = 'membership') > 0
                    THEN error('the fit ' || fit_id || ' has several grouping factors or a membership, and ml_score '
                               || 'knows one group of each row; use Fit.predict')
                    WHEN count(*) = 1 THEN printf($$CAST(%s AS VARCHAR)$$, any_value(sql))
                    ELSE printf($$'[' || concat_ws(', ', %s) || ']'$$,
                                string_agg(printf($$to_json(CAST(%s AS VARCHAR))$$, sql), ', ' ORDER BY position))
               END AS sql
        FROM terms WHERE part = 'key'
    ), distinct_terms AS (
        SELECT name, any_value(sql) AS sql FROM terms WHERE part IN ('fixed', 'random', 'offset') GROUP BY name
    ), entries AS (
        SELECT string_agg(printf($${'term': '%s', 'value': CAST(%s AS DOUBLE)}$$, replace(name, $$'$$, $$''$$), sql), ', '
                          ORDER BY name) AS sql
        FROM distinct_terms
    )
    SELECT printf($$WITH mlsql_lines AS (SELECT %s AS row_id, %s AS key, unnest([%s], recursive := true) FROM %s) $$,
                  row_id, keys.sql, entries.sql, tbl)
           || printf($$FROM ml_score('%s', 'mlsql_lines', prefix := '%s')$$, fit_id, prefix)
    FROM keys CROSS JOIN entries
);
COMMENT ON MACRO ml_score_sql IS 'the statement that scores the rows of a table with ml_score, every term of the model computed from their columns [mlsql]';
