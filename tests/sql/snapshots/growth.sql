-- math ~ year*sector + (year | school)

-- survey of data: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT("math") AS "math: count",
  AVG("math") AS "math: mean",
  MIN("math") AS "math: min",
  MAX("math") AS "math: max",
  COUNT("school") AS "school: count",
  COUNT("year") AS "year: count",
  AVG(CAST("year" AS DOUBLE)) AS "year: mean",
  MIN(CAST("year" AS DOUBLE)) AS "year: min",
  MAX(CAST("year" AS DOUBLE)) AS "year: max",
  COUNT("sector") AS "sector: count",
  AVG(CAST("sector" AS DOUBLE)) AS "sector: mean",
  MIN(CAST("sector" AS DOUBLE)) AS "sector: min",
  MAX(CAST("sector" AS DOUBLE)) AS "sector: max"
FROM "pupils";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "school" AS "key 0",
    "math" AS "x0",
    CAST("year" AS DOUBLE) AS "x1",
    CAST("sector" AS DOUBLE) AS "x2"
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
    COUNT_IF("starts") AS "starts",
    MIN("x1") <> MAX("x1") AS "x1 varies",
    MIN("x2") <> MAX("x2") AS "x2 varies"
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
    BOOL_OR(CAST("x2 varies" AS BOOLEAN)) AS "x2 varies"
  FROM "mlsql_by_group"
) AS found
CROSS JOIN (
  SELECT
    STDDEV_POP("x0") AS "x0 spread",
    STDDEV_POP("x1") AS "x1 spread",
    STDDEV_POP("x2") AS "x2 spread"
  FROM "mlsql_preview"
) AS spreads;

-- moments by group: one row per group: counts, sums, products
WITH "mlsql_rows" AS (
  SELECT
    "school" AS "school",
    CAST("year" AS DOUBLE) - 2012 AS "year",
    "math" - 16 AS "math",
    CAST("sector" AS DOUBLE) - 0.5 AS "sector"
  FROM "pupils"
)
SELECT
  "school",
  COUNT(*) AS "n",
  SUM("year") AS "year",
  SUM("math") AS "math",
  SUM("year" * "year") AS "year * year",
  SUM("year" * "math") AS "year * math",
  SUM("math" * "math") AS "math * math",
  MIN("sector") AS "min of sector",
  MAX("sector") AS "max of sector"
FROM "mlsql_rows"
GROUP BY
  "school"
ORDER BY
  "school";
