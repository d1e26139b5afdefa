-- math ~ log(income + 1) + offset(ses) + (1 | country:school)

-- survey of data: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT((
    (
      "math"
    ) - (
      "ses"
    )
  )) AS "math: count",
  AVG((
    (
      "math"
    ) - (
      "ses"
    )
  )) AS "math: mean",
  MIN((
    (
      "math"
    ) - (
      "ses"
    )
  )) AS "math: min",
  MAX((
    (
      "math"
    ) - (
      "ses"
    )
  )) AS "math: max",
  COUNT("country") AS "country: count",
  COUNT("school") AS "school: count",
  COUNT(LOG("income" + 1)) AS "log(income + 1): count",
  AVG(LOG("income" + 1)) AS "log(income + 1): mean",
  MIN(LOG("income" + 1)) AS "log(income + 1): min",
  MAX(LOG("income" + 1)) AS "log(income + 1): max"
FROM "pupils";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "country" AS "key 0",
    "school" AS "key 1",
    (
      (
        "math"
      ) - (
        "ses"
      )
    ) AS "x0",
    LOG("income" + 1) AS "x1"
  FROM "pupils"
  WHERE
    NOT LOG("income" + 1) IS NULL
    AND NOT ISNAN(LOG("income" + 1))
    AND NOT "country" IS NULL
    AND NOT "school" IS NULL
  LIMIT 20000
), "mlsql_runs" AS (
  SELECT
    *,
    "key 0" IS DISTINCT FROM LAG("key 0") OVER ()
    OR "key 1" IS DISTINCT FROM LAG("key 1") OVER () AS "starts"
  FROM "mlsql_preview"
), "mlsql_by_group" AS (
  SELECT
    COUNT(*) AS "n",
    COUNT_IF("starts") AS "starts",
    MIN("x1") <> MAX("x1") AS "x1 varies"
  FROM "mlsql_runs"
  GROUP BY
    "key 0",
    "key 1"
)
SELECT
  *
FROM (
  SELECT
    COALESCE(SUM("n"), 0) AS "rows",
    COUNT(*) AS "groups",
    COALESCE(SUM("starts"), 0) AS "runs",
    BOOL_OR(CAST("x1 varies" AS BOOLEAN)) AS "x1 varies"
  FROM "mlsql_by_group"
) AS found
CROSS JOIN (
  SELECT
    STDDEV_POP("x0") AS "x0 spread",
    STDDEV_POP("x1") AS "x1 spread"
  FROM "mlsql_preview"
) AS spreads;

-- moments by group: one row per group: counts, sums, products
WITH "mlsql_rows" AS (
  SELECT
    "country" AS "country",
    "school" AS "school",
    LOG("income" + 1) - 4.5 AS "log(income + 1)",
    (
      (
        "math"
      ) - (
        "ses"
      )
    ) - 10 AS "math"
  FROM "pupils"
  WHERE
    NOT LOG("income" + 1) IS NULL AND NOT ISNAN(LOG("income" + 1))
)
SELECT
  "country",
  "school",
  COUNT(*) AS "n",
  SUM("log(income + 1)") AS "log(income + 1)",
  SUM("math") AS "math",
  SUM("log(income + 1)" * "log(income + 1)") AS "log(income + 1) * log(income + 1)",
  SUM("log(income + 1)" * "math") AS "log(income + 1) * math",
  SUM("math" * "math") AS "math * math"
FROM "mlsql_rows"
GROUP BY
  "country",
  "school"
ORDER BY
  "country",
  "school";
