-- math ~ C(track, ref='c')*female + (female || school)

-- survey of data: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT("math") AS "math: count",
  AVG("math") AS "math: mean",
  MIN("math") AS "math: min",
  MAX("math") AS "math: max",
  COUNT("school") AS "school: count",
  COUNT("track") AS "track: count",
  COUNT("female") AS "female: count",
  AVG(CAST("female" AS DOUBLE)) AS "female: mean",
  MIN(CAST("female" AS DOUBLE)) AS "female: min",
  MAX(CAST("female" AS DOUBLE)) AS "female: max"
FROM "pupils";

-- factor levels: levels with rows
SELECT
  *
FROM (
  SELECT
    0 AS "factor",
    CAST("track" AS TEXT) AS "level",
    COUNT(*) AS "rows",
    ROW_NUMBER() OVER (ORDER BY "track") AS "position"
  FROM "pupils"
  WHERE
    NOT "track" IS NULL
  GROUP BY
    "track"
) AS "levels"
ORDER BY
  "factor",
  "position";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "school" AS "key 0",
    "math" AS "x0",
    "track" AS "x1",
    CAST("female" AS DOUBLE) AS "x2"
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
    STDDEV_POP("x2") AS "x2 spread"
  FROM "mlsql_preview"
) AS spreads;

-- moments by group: one row per group: counts, sums, products
WITH "mlsql_rows" AS (
  SELECT
    "school" AS "school",
    CAST(CAST("track" = 'a' AS INT) AS DOUBLE) AS "track[a]",
    CAST(CAST("track" = 'b' AS INT) AS DOUBLE) AS "track[b]",
    CAST("female" AS DOUBLE) - 0.5 AS "female",
    "math" - 16 AS "math"
  FROM "pupils"
)
SELECT
  "school",
  COUNT(*) AS "n",
  SUM("track[a]") AS "track[a]",
  SUM("track[b]") AS "track[b]",
  SUM("female") AS "female",
  SUM("female" * "track[a]") AS "female * track[a]",
  SUM("female" * "track[b]") AS "female * track[b]",
  SUM("math") AS "math",
  SUM("track[a]" * "track[a]") AS "track[a] * track[a]",
  SUM("track[a]" * "track[b]") AS "track[a] * track[b]",
  SUM("track[a]" * "female") AS "track[a] * female",
  SUM("track[a]" * "female" * "track[a]") AS "track[a] * female * track[a]",
  SUM("track[a]" * "female" * "track[b]") AS "track[a] * female * track[b]",
  SUM("track[a]" * "math") AS "track[a] * math",
  SUM("track[b]" * "track[b]") AS "track[b] * track[b]",
  SUM("track[b]" * "female") AS "track[b] * female",
  SUM("track[b]" * "female" * "track[a]") AS "track[b] * female * track[a]",
  SUM("track[b]" * "female" * "track[b]") AS "track[b] * female * track[b]",
  SUM("track[b]" * "math") AS "track[b] * math",
  SUM("female" * "female") AS "female * female",
  SUM("female" * "female" * "track[a]") AS "female * female * track[a]",
  SUM("female" * "female" * "track[b]") AS "female * female * track[b]",
  SUM("female" * "math") AS "female * math",
  SUM("female" * "track[a]" * "female" * "track[a]") AS "female * track[a] * female * track[a]",
  SUM("female" * "track[a]" * "female" * "track[b]") AS "female * track[a] * female * track[b]",
  SUM("female" * "track[a]" * "math") AS "female * track[a] * math",
  SUM("female" * "track[b]" * "female" * "track[b]") AS "female * track[b] * female * track[b]",
  SUM("female" * "track[b]" * "math") AS "female * track[b] * math",
  SUM("math" * "math") AS "math * math"
FROM "mlsql_rows"
GROUP BY
  "school"
ORDER BY
  "school";
