#!/usr/bin/env bash
# End-to-end checks with real clients and registries, all on loopback.
#
#   tests/e2e/run.sh                 all of them
#   tests/e2e/run.sh docker curl     only these files
#
# Needs root (dockerd, containerd), Debian's packages as listed in .ci/run, and a built mirror:
# target/release/pierhead, or the program named by $PIERHEAD. Clients that Debian does not have come by
# tests/tools.sh. KEEP=1 keeps the logs and data.
# The last line says 'N passed, N failed'; the exit code is 0 only if nothing failed.
set -euo pipefail

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$E2E/../.." && pwd)
WORK=$(mktemp -d "${TMPDIR:-/tmp}/pierhead-e2e.XXXXXX")
PATH=$ROOT/target/tools/bin:$PATH

. "$E2E/lib.sh"
trap clean_up EXIT
trap 'exit 130' INT TERM
. "$E2E/fixtures.sh"

ALL="curl skopeo podman containerd docker upstreams tls push newcomer secure through conformance"
# shellcheck disable=SC2086  # a list of words
[ $# -gt 0 ] || set -- $ALL

# run_file NAME: one client's file, in a shell of its own; it defines NAME_main. What fails outside of a
# check (a daemon that does not start) ends that file and counts as one failure.
run_file() {
  local name=$1 code began=$EPOCHREALTIME
  banner "$name"
  mark_logs
  set +e
  (set -e; . "$E2E/$name.sh"; "${name}_main")
  code=$?
  set -e
  [ "$code" = 0 ] || { record fail "$name: set up" "exit $code"; show_logs; }
  stop_all
  echo "  ($name took $(seconds_since "$began"))"
}

for name in "$@"; do
  [ -f "$E2E/$name.sh" ] && [[ " $ALL " == *" $name "* ]] || { echo "no such checks: $name; there are: $ALL" >&2; exit 2; }
done
[ -x "$PIERHEAD" ] || { echo "no program at $PIERHEAD: run 'cargo build --release' first" >&2; exit 2; }

banner "upstreams and images"
began=$EPOCHREALTIME
if ! images_build >"$LOGS/images.log" 2>&1; then
  record fail "build the images" "see below"
  show_logs
else
  echo "  ($(seconds_since "$began"))"
  for name in "$@"; do run_file "$name"; done
fi

skipped=$(count skip)
echo
echo "$(count pass) passed, $(count fail) failed$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
[ "$(count fail)" = 0 ] && [ "$(count pass)" != 0 ]
