#!/usr/bin/env bash
# Every shell script passes shellcheck; exit 77 (skipped) where that is not installed.
set -euo pipefail
cd "${SOURCE:-$(dirname "${BASH_SOURCE[0]}")/../..}"
command -v shellcheck >/dev/null || exit 77
mapfile -t scripts < <(git ls-files -co --exclude-standard 2>/dev/null | while read -r file; do
    [ -f "$file" ] || continue
    case $(head -c 40 "$file" | tr -d '\0' | head -n 1) in '#!'*sh) echo "$file" ;; esac
done)
[ ${#scripts[@]} -gt 0 ] || { echo "no scripts found"; exit 1; }
shellcheck -S warning "${scripts[@]}"
echo "${#scripts[@]} scripts checked"
