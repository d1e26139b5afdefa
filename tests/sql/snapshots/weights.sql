-- math ~ grand_center(ses) + (ses | school)

-- survey of data: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT("math") AS "math: count",
  AVG("math") AS "math: mean",
  MIN("math") AS "math: min",
  MAX("math") AS "math: max",
  COUNT("school") AS "school: count",
  COUNT((
    "weight" / 2
  )) AS "weight / 2: count",
  AVG((
    "weight" / 2
  )) AS "weight / 2: mean",
  MIN((
    "weight" / 2
  )) AS "weight / 2: min",
  MAX((
    "weight" / 2
  )) AS "weight / 2: max",
  COUNT("ses") AS "ses: count",
  AVG("ses") AS "ses: mean",
  MIN("ses") AS "ses: min",
  MAX("ses") AS "ses: max"
FROM "pupils";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "school" AS "key 0",
    "math" AS "x0",
    (
      "weight" / 2
    ) AS "x1",
    "ses" AS "x2"
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
    "ses" - 6 AS "ses",
    "math" - 16 AS "math",
    (
      "weight" / 2
    ) AS "mlsql weight"
  FROM "pupils"
)
SELECT
  "school",
  COUNT(*) AS "n",
  SUM("mlsql weight") AS "sum of weights",
  SUM(LN("mlsql weight")) AS "sum of log weights",
  SUM("mlsql weight" * "ses") AS "ses",
  SUM("mlsql weight" * "math") AS "math",
  SUM("mlsql weight" * "ses" * "ses") AS "ses * ses",
  SUM("mlsql weight" * "ses" * "math") AS "ses * math",
  SUM("mlsql weight" * "math" * "math") AS "math * math",
  SUM("ses") AS "unweighted ses"
FROM "mlsql_rows"
GROUP BY
  "school"
ORDER BY
  "school";
