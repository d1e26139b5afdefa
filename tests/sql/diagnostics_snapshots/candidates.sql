-- candidates: one row per group: the value of each candidate level-2 predictor
WITH "mlsql_rows" AS (
  SELECT
    "school" AS "key 0",
    CASE WHEN ISFINITE(CAST("sector" AS DOUBLE)) THEN CAST("sector" AS DOUBLE) END AS "x0",
    CASE WHEN ISFINITE(CAST("income" AS DOUBLE)) THEN CAST("income" AS DOUBLE) END AS "x1"
  FROM pupils
  WHERE
    "school" IN (
      SELECT
        "school"
      FROM schools
      WHERE
        NOT "size" IS NULL AND NOT "school" IS NULL
    )
), "mlsql_groups" AS (
  SELECT
    "key 0",
    COUNT(*) AS "n",
    MIN("x0") AS "low 0",
    MAX("x0") AS "high 0",
    AVG("x1") AS "low 1",
    AVG("x1") AS "high 1"
  FROM "mlsql_rows"
  GROUP BY
    "key 0"
), "mlsql_level2" AS (
  SELECT
    "school" AS "key 0",
    CASE WHEN ISFINITE(CAST(LN("size") AS DOUBLE)) THEN CAST(LN("size") AS DOUBLE) END AS "low 2",
    CASE WHEN ISFINITE(CAST(LN("size") AS DOUBLE)) THEN CAST(LN("size") AS DOUBLE) END AS "high 2"
  FROM schools
  WHERE
    NOT "school" IS NULL
)
SELECT
  "mlsql_groups"."key 0",
  "mlsql_groups"."n",
  "mlsql_groups"."low 0",
  "mlsql_groups"."high 0",
  "mlsql_groups"."low 1",
  "mlsql_groups"."high 1",
  "mlsql_level2"."low 2",
  "mlsql_level2"."high 2"
FROM "mlsql_groups"
LEFT JOIN "mlsql_level2"
  ON "mlsql_groups"."key 0" = "mlsql_level2"."key 0"
ORDER BY
  "mlsql_groups"."key 0";
