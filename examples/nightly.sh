#!/usr/bin/env bash
# A nightly job: fit several models, keep the results in one database, tell by exit codes what needs a look.
#
#     bash examples/nightly.sh [data.parquet [results.duckdb]]
#
# Without arguments it runs on the example data that come with mlsql, in a folder that it removes.
set -euo pipefail

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
data=${1:-$(python -c 'import mlsql; print(mlsql.example_data("hsb"))')}
results=${2:-$scratch/results.duckdb}

cat >"$scratch/models.txt" <<'MODELS'
mathach ~ group_center(ses) + (group_center(ses) | school)
mathach ~ meanses * ses + sector * ses + (ses | school)
mathach ~ group_center(income) + (1 | school)
MODELS

failed=0
while IFS= read -r formula; do
    code=0
    mlsql fit --data "$data" --formula "$formula" --into "$results" --json \
        >"$scratch/fit.json" 2>"$scratch/log.txt" || code=$?
    case $code in
    0) verdict="converged" ;;
    3) verdict="look at it: $(python -c 'import json, sys; print(json.load(sys.stdin)["status"])' <"$scratch/fit.json")" ;;
    *) verdict="failed: $(head -1 "$scratch/log.txt")" && failed=$((failed + 1)) ;;
    esac
    printf '%s\n    exit code %s, %s\n' "$formula" "$code" "$verdict"
done <"$scratch/models.txt"

python - "$results" <<'QUERY'
import sys

import duckdb

with duckdb.connect(sys.argv[1], read_only=True) as con:
    print("\nstored:")
    for row in con.execute("SELECT status, n_rows, deviance, formula FROM ml_fits ORDER BY deviance DESC").fetchall():
        print("    {:10} {:6} rows  deviance {:10.2f}  {}".format(*row))
QUERY

echo
echo "$failed of $(wc -l <"$scratch/models.txt" | tr -d ' ') models failed"
# the last model asks for a column that the example data do not have, so that there is a failure to report
exit $((failed > 0))
