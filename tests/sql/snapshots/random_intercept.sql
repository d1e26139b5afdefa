-- math ~ 1 + (1 | school)

-- survey of data: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT("math") AS "math: count",
  AVG("math") AS "math: mean",
  MIN("math") AS "math: min",
  MAX("math") AS "math: max",
  COUNT("school") AS "school: count"
FROM "pupils";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "school" AS "key 0",
    "math" AS "x0"
  FROM "pupils"
  WHERE
    NOT "school" IS NULL
  LIMIT 20000
), "mlsql_runs" AS (
  SELECT
    *,
    "key 0" IS DISTINCT FROM LAG("key 0") OVER () AS "starts"
  FROM "mlsql_preview"
), "mlsql_by_group" AS (
  SELECT
    COUNT(*) AS "n",
    COUNT_IF("starts") AS "starts"
  FROM "mlsql_runs"
  GROUP BY
    "key 0"
)
SELECT
  *
FROM (
  SELECT
    COALESCE(SUM("n"), 0) AS "rows",
    COUNT(*) AS "groups",
    COALESCE(SUM("starts"), 0) AS "runs"
  FROM "mlsql_by_group"
) AS found
CROSS JOIN (
  SELECT
    STDDEV_POP("x0") AS "x0 spread"
  FROM "mlsql_preview"
) AS spreads;

-- moments by group: one row per group: counts, sums, products
WITH "mlsql_rows" AS (
  SELECT
    "school" AS "school",
    "math" - 16 AS "math"
  FROM "pupils"
)
SELECT
  "school",
  COUNT(*) AS "n",
  SUM("math") AS "math",
  SUM("math" * "math") AS "math * math"
FROM "mlsql_rows"
GROUP BY
  "school"
ORDER BY
  "school";
