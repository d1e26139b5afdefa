-- residual summary: counts, sums of powers and quantiles of the residuals
SELECT
  COUNT(*) AS "rows",
  COUNT("residual") AS "n",
  SUM("residual") AS "sum 1",
  SUM("residual" * "residual") AS "sum 2",
  SUM("residual" * "residual" * "residual") AS "sum 3",
  SUM("residual" * "residual" * "residual" * "residual") AS "sum 4",
  MIN("residual") AS "min",
  MAX("residual") AS "max",
  APPROX_QUANTILE("residual", [0.5]) AS "quantiles"
FROM (
  SELECT
    "residual" / 4 AS "residual"
  FROM (
    WITH "mlsql_scored" AS (
      SELECT
        "data".*,
        "groups".*,
        CAST(1 AS DOUBLE) AS "mlsql x 0",
        NULLIF(CAST("ses" AS DOUBLE), CAST('NaN' AS DOUBLE)) AS "mlsql x 1",
        "level2"."mlsql level2 size" AS "mlsql x 2",
        NULLIF(CAST("ses" AS DOUBLE), CAST('NaN' AS DOUBLE)) * "level2"."mlsql level2 size" AS "mlsql x 3",
        CAST(1 AS DOUBLE) AS "mlsql z 0",
        NULLIF(CAST("ses" AS DOUBLE), CAST('NaN' AS DOUBLE)) AS "mlsql z 1"
      FROM (
        SELECT
          *
        FROM (
          SELECT
            *
          FROM pupils
          WHERE
            "school" IN (
              SELECT
                "school"
              FROM schools
              WHERE
                NOT "size" IS NULL AND NOT "school" IS NULL
            )
        ) AS analysis
      ) AS data
      LEFT JOIN (
        SELECT
          *
        FROM groups_of_the_fit
      ) AS groups
        ON "school" = "groups"."mlsql key 0"
      LEFT JOIN (
        SELECT
          "school" AS "mlsql level2 key 0",
          CAST("size" AS DOUBLE) AS "mlsql level2 size"
        FROM schools
      ) AS level2
        ON "school" = "level2"."mlsql level2 key 0"
    )
    SELECT
      NULLIF("math", CAST('NaN' AS DOUBLE)) - (
        10 + 1 * "mlsql x 0" + 2 * "mlsql x 1" + 3 * "mlsql x 2" + 4 * "mlsql x 3"
      ) AS "residual_population",
      CASE
        WHEN NOT "mlsql u 0" IS NULL
        THEN NULLIF("math", CAST('NaN' AS DOUBLE)) - (
          10 + 1 * "mlsql x 0" + 2 * "mlsql x 1" + 3 * "mlsql x 2" + 4 * "mlsql x 3"
        ) - (
          COALESCE("mlsql u 0", 0) * "mlsql z 0" + COALESCE("mlsql u 1", 0) * "mlsql z 1"
        )
      END AS "residual",
      NULLIF("math", CAST('NaN' AS DOUBLE)) - (
        10 + 1 * "mlsql x 0" + 2 * "mlsql x 1" + 3 * "mlsql x 2" + 4 * "mlsql x 3"
      ) - (
        "mlsql ols 0" * "mlsql z 0" + "mlsql ols 1" * "mlsql z 1"
      ) AS "residual_ols",
      CASE
        WHEN NOT "mlsql u 0" IS NULL
        THEN (
          NULLIF("math", CAST('NaN' AS DOUBLE)) - (
            10 + 1 * "mlsql x 0" + 2 * "mlsql x 1" + 3 * "mlsql x 2" + 4 * "mlsql x 3"
          ) - (
            COALESCE("mlsql u 0", 0) * "mlsql z 0" + COALESCE("mlsql u 1", 0) * "mlsql z 1"
          )
        ) / 4
      END AS "residual_standardized"
    FROM "mlsql_scored"
  ) AS scored
) AS residuals;
