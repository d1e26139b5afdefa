-- math ~ ses*size + area + (ses | school)

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
  MAX("ses") AS "ses: max"
FROM (
  SELECT
    *
  FROM pupils
  WHERE
    year > 2010
) AS "data";

-- survey of level2: rows, missing values, means, ranges
SELECT
  COUNT(*) AS "rows",
  COUNT("size") AS "size: count",
  AVG(CAST("size" AS DOUBLE)) AS "size: mean",
  MIN(CAST("size" AS DOUBLE)) AS "size: min",
  MAX(CAST("size" AS DOUBLE)) AS "size: max",
  COUNT("area") AS "area: count"
FROM "schools";

-- survey of keys: does the level2 table have each group once
WITH "mlsql_level2_keys" AS (
  SELECT
    "school" AS "k0"
  FROM "schools"
  WHERE
    NOT "school" IS NULL
), "mlsql_data_groups" AS (
  SELECT
    "school" AS "k0",
    COUNT(*) AS "n"
  FROM (
    SELECT
      *
    FROM pupils
    WHERE
      year > 2010
  ) AS "data"
  WHERE
    NOT "school" IS NULL
  GROUP BY
    "school"
)
SELECT
  (
    SELECT
      COUNT(*)
    FROM "mlsql_level2_keys"
  ) AS "rows",
  (
    SELECT
      COUNT(*)
    FROM (
      SELECT DISTINCT
        "k0"
      FROM "mlsql_level2_keys"
    ) AS d
  ) AS "keys",
  (
    SELECT
      COALESCE(SUM("a"."n"), 0)
    FROM "mlsql_data_groups" AS "a"
    ANTI JOIN "mlsql_level2_keys" AS "b"
      ON "a"."k0" = "b"."k0"
  ) AS "unmatched";

-- factor levels: levels with rows
SELECT
  *
FROM (
  SELECT
    0 AS "factor",
    CAST("area" AS TEXT) AS "level",
    COUNT(*) AS "rows",
    ROW_NUMBER() OVER (ORDER BY "area") AS "position"
  FROM "schools"
  WHERE
    NOT "area" IS NULL
    AND "school" IN (
      SELECT
        "school"
      FROM (
        SELECT
          *
        FROM pupils
        WHERE
          year > 2010
      ) AS "data"
    )
  GROUP BY
    "area"
) AS "levels"
ORDER BY
  "factor",
  "position";

-- preview: first 20,000 rows: what varies within groups, whether groups lie together, spreads
WITH "mlsql_preview" AS MATERIALIZED (
  SELECT
    "school" AS "key 0",
    "math" AS "x0",
    "ses" AS "x1"
  FROM (
    SELECT
      *
    FROM pupils
    WHERE
      year > 2010
  ) AS "data"
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
    MIN("x1") <> MAX("x1") AS "x1 varies"
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
    "school" AS "school",
    "ses" - 6 AS "ses",
    "math" - 16 AS "math"
  FROM (
    SELECT
      *
    FROM pupils
    WHERE
      year > 2010
  ) AS "data"
  WHERE
    "school" IN (
      SELECT
        "school"
      FROM "schools"
      WHERE
        NOT "size" IS NULL AND NOT "area" IS NULL AND NOT "school" IS NULL
    )
), "mlsql_groups" AS (
  SELECT
    "school",
    COUNT(*) AS "n",
    SUM("ses") AS "ses",
    SUM("math") AS "math",
    SUM("ses" * "ses") AS "ses * ses",
    SUM("ses" * "math") AS "ses * math",
    SUM("math" * "math") AS "math * math"
  FROM "mlsql_rows"
  GROUP BY
    "school"
), "mlsql_level2" AS (
  SELECT
    "school" AS "school",
    CAST("size" AS DOUBLE) - 700 AS "size",
    CAST(CAST("area" = 'urban' AS INT) AS DOUBLE) AS "area[urban]"
  FROM "schools"
  WHERE
    NOT "size" IS NULL AND NOT "area" IS NULL AND NOT "school" IS NULL
)
SELECT
  "mlsql_groups".*,
  "mlsql_level2"."size",
  "mlsql_level2"."area[urban]"
FROM "mlsql_groups"
JOIN "mlsql_level2"
  ON "mlsql_groups"."school" = "mlsql_level2"."school"
ORDER BY
  "mlsql_groups"."school";
