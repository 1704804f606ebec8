#!/usr/bin/env bash
# Gate a checkpoint by `uwm eval`: exit code 0 if every requirement is met, 5 if one is not, another for a mistake.
#
# It reads GATE_MODEL, GATE_PAIRS, GATE_REQUIRE (one requirement a line), GATE_JUNIT, and if they are not empty
# GATE_BASELINE, GATE_SPLIT, GATE_ZERO_SHOT (one a line), GATE_DATA_ROOT. Values reach uwm as arguments, never the shell.
set -euo pipefail

arguments=(--pairs "$GATE_PAIRS" --annotations github --junit "$GATE_JUNIT")

add() { # FLAG VALUE: the flag, unless the value is empty
  if [ -n "${2//[[:space:]]/}" ]; then arguments+=("$1" "$2"); fi
}

add_lines() { # FLAG LINES: the flag once a line
  local line
  while IFS= read -r line; do add "$1" "$line"; done <<<"$2"
}

if [ -z "${GATE_REQUIRE//[[:space:]]/}" ]; then
  echo "::error title=uwm gate::no requirement is given; a gate without one lets everything pass"
  exit 2
fi
add_lines --require "$GATE_REQUIRE"
add --baseline "${GATE_BASELINE:-}"
add --split "${GATE_SPLIT:-}"
add_lines --zero-shot "${GATE_ZERO_SHOT:-}"
add --data-root "${GATE_DATA_ROOT:-}"
add --markdown "${GITHUB_STEP_SUMMARY:-}"
exec uwm eval "${arguments[@]}" -- "$GATE_MODEL"
