-- math ~ ses + female + year + (ses | school)

-- survey of data: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT("math") AS "math: count",
  AVG("math") AS "math: mean",
  MIN("math") AS "math: min",
  MAX("math") AS "math: max",
  COUNT("school") AS "school: count",
  COUNT("ses") AS "ses: count",
  AVG("ses") AS "ses: mean",
  MIN("ses") AS "ses: min",
  MAX("ses") AS "ses: max",
  COUNT("female") AS "female: count",
  AVG(CAST("female" AS DOUBLE)) AS "female: mean",
  MIN(CAST("female" AS DOUBLE)) AS "female: min",
  MAX(CAST("female" AS DOUBLE)) AS "female: max",
  COUNT("year") AS "year: count",
  AVG(CAST("year" AS DOUBLE)) AS "year: mean",
  MIN(CAST("year" AS DOUBLE)) AS "year: min",
  MAX(CAST("year" AS DOUBLE)) AS "year: max"
FROM "large";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "school" AS "key 0",
    "math" AS "x0",
    "ses" AS "x1",
    CAST("female" AS DOUBLE) AS "x2",
    CAST("year" AS DOUBLE) AS "x3"
  FROM "large"
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
    COUNT_IF("starts") AS "starts",
    MIN("x1") <> MAX("x1") AS "x1 varies",
    MIN("x2") <> MAX("x2") AS "x2 varies",
    MIN("x3") <> MAX("x3") AS "x3 varies"
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
    COALESCE(SUM("starts"), 0) AS "runs",
    BOOL_OR(CAST("x1 varies" AS BOOLEAN)) AS "x1 varies",
    BOOL_OR(CAST("x2 varies" AS BOOLEAN)) AS "x2 varies",
    BOOL_OR(CAST("x3 varies" AS BOOLEAN)) AS "x3 varies"
  FROM "mlsql_by_group"
) AS found
CROSS JOIN (
  SELECT
    STDDEV_POP("x0") AS "x0 spread",
    STDDEV_POP("x1") AS "x1 spread",
    STDDEV_POP("x2") AS "x2 spread",
    STDDEV_POP("x3") AS "x3 spread"
  FROM "mlsql_preview"
) AS spreads;

-- moments by group: one row per group: counts, sums, products
WITH "mlsql_rows" AS (
  SELECT
    "school" AS "school",
    "ses" - 6 AS "ses",
    CAST("female" AS DOUBLE) - 0.5 AS "female",
    CAST("year" AS DOUBLE) - 2012 AS "year",
    "math" - 16 AS "math"
  FROM "large"
)
SELECT
  "school",
  COUNT(*) AS "n",
  SUM("ses") AS "ses",
  SUM("female") AS "female",
  SUM("year") AS "year",
  SUM("math") AS "math",
  SUM("ses" * "ses") AS "ses * ses",
  SUM("ses" * "female") AS "ses * female",
  SUM("ses" * "year") AS "ses * year",
  SUM("ses" * "math") AS "ses * math"
FROM "mlsql_rows"
GROUP BY
  "school"
ORDER BY
  "school";

-- pooled moments: one row: products that need no group
WITH "mlsql_rows" AS (
  SELECT
    "ses" - 6 AS "ses",
    CAST("female" AS DOUBLE) - 0.5 AS "female",
    CAST("year" AS DOUBLE) - 2012 AS "year",
    "math" - 16 AS "math"
  FROM "large"
)
SELECT
  SUM("female" * "female") AS "female * female",
  SUM("female" * "year") AS "female * year",
  SUM("female" * "math") AS "female * math",
  SUM("year" * "year") AS "year * year",
  SUM("year" * "math") AS "year * math",
  SUM("math" * "math") AS "math * math"
FROM "mlsql_rows";
