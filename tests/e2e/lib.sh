# What every end-to-end file shares: processes that end with the run, waiting, and counting checks.
# Sourced by run.sh; needs $WORK, a temporary directory of this run.

LOGS=$WORK/logs     # one file for each process, one for the check that runs
RUN=$WORK/run       # NAME.pid and NAME.exit of each process; sockets
RESULTS=$WORK/results
mkdir -p "$LOGS" "$RUN"
: >"$RESULTS"

# Nothing may leave this machine. A client that gives up on the mirror and turns to the real registry
# meets a closed port, so a pull that works is a pull through the mirror.
export HTTP_PROXY=http://127.0.0.1:9 HTTPS_PROXY=http://127.0.0.1:9
export http_proxy=$HTTP_PROXY https_proxy=$HTTPS_PROXY
export NO_PROXY=127.0.0.1,127.0.0.0/8,localhost no_proxy=127.0.0.1,127.0.0.0/8,localhost

# ---- checks ----------------------------------------------------------------------------------------------

banner() { printf '\n== %s\n' "$*"; }

# check NAME COMMAND…: the command must succeed. It runs in a shell of its own with errexit on, so that
# the first command to fail inside a function fails the check.
# Never call check in a condition or before ||: bash would switch errexit off inside it.
check() {
  local name=$1 began=$EPOCHREALTIME code; shift
  mark_logs
  set +e
  (set -e; "$@") >"$LOGS/check.out" 2>&1
  code=$?
  set -e
  if [ "$code" = 0 ]; then
    record pass "$name" "$(seconds_since "$began")"
  else
    record fail "$name" "exit $code"
    show_logs
  fi
}

# record pass|fail|skip NAME NOTE
record() {
  printf '%s\t%s\n' "$1" "$2" >>"$RESULTS"
  printf '  %-4s  %s (%s)\n' "$1" "$2" "$3"
}

skip() { record skip "$1" "$2"; }

count() { grep -c "^$1"$'\t' "$RESULTS" || true; }

seconds_since() {
  local now=$EPOCHREALTIME
  printf '%d.%d s' $(((${now/./} - ${1/./}) / 1000000)) $(((${now/./} - ${1/./}) / 100000 % 10))
}

declare -A LOG_LINES

mark_logs() {
  local log
  for log in "$LOGS"/*.log; do [ -e "$log" ] && LOG_LINES[$log]=$(wc -l <"$log"); done
  : >"$LOGS/check.out"
}

# What the failed check printed, and the end of what each process has logged since it began.
show_logs() {
  local log
  tail -n 25 "$LOGS/check.out" | cut -c1-400 | sed 's/^/        | /'
  for log in "$LOGS"/*.log; do
    [ "$(wc -l <"$log")" -gt "${LOG_LINES[$log]:-0}" ] || continue
    echo "        --- ${log##*/}"
    tail -n "+$((${LOG_LINES[$log]:-0} + 1))" "$log" | tail -n 15 | cut -c1-400 | sed 's/^/        | /'
  done
}

# Says why a check fails and fails it.
fail() { echo "$*" >&2; return 1; }

expect_equal() { [ "$2" = "$3" ] || fail "$1: expected '$3', got '$2'"; }
expect_match() { grep -qiE -- "$3" <<<"$2" || fail "$1: expected something like '$3', got '$2'"; }

# ---- processes -------------------------------------------------------------------------------------------

# start NAME COMMAND…: runs a process of ours. Its output is appended to NAME.log, so that an access log
# outlives a restart; its exit code ends up in NAME.exit.
start() {
  local name=$1; shift
  rm -f "$RUN/$name.pid" "$RUN/$name.exit"
  (
    code=0
    "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/$name.pid"
    wait $! || code=$?
    echo "$code" >"$RUN/$name.exit"
  ) 2>/dev/null &
  wait_for "$name to have a pid" 5 test -s "$RUN/$name.pid"
}

pid_of() { cat "$RUN/$1.pid"; }

running() { [ -s "$RUN/$1.pid" ] && [ ! -s "$RUN/$1.exit" ]; }

# stop NAME [SIGNAL]: asks a process to end (by its pid) and waits until it has; kills it if it does not listen.
stop() {
  local name=$1 signal=${2:-TERM}
  running "$name" || return 0
  kill -s "$signal" "$(pid_of "$name")" 2>/dev/null || true
  wait_for "$name to end" 30 test -s "$RUN/$name.exit" && return 0
  kill -s KILL "$(pid_of "$name")" 2>/dev/null || true
  return 1
}

exit_code_of() { cat "$RUN/$1.exit"; }

# Whatever a file has left running.
stop_all() {
  local file
  for file in "$RUN"/*.pid; do
    [ -e "$file" ] || continue
    stop "$(basename "$file" .pid)" || true
  done
}

# The end of the run, however it came: no process, no mount, no file is left.
clean_up() {
  local mount
  stop_all
  awk -v under="$WORK/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r |
    while read -r mount; do umount "$mount" || true; done
  if [ -n "${KEEP:-}" ]; then echo "kept: $WORK"; else rm -rf "$WORK"; fi
}

# wait_for WHAT SECONDS COMMAND…: until the command succeeds.
wait_for() {
  local what=$1 limit=$2 end; shift 2
  end=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { echo "waited $limit s for $what" >&2; return 1; }
    sleep 0.1
  done
}

# A port nobody listens on. Below 32768, where the kernel takes the near end of outgoing connections from;
# handed out once in a run.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    grep -qx "$port" "$RUN/ports" 2>/dev/null && continue
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue
    echo "$port" >>"$RUN/ports"
    echo "$port"
    return
  done
}

# ---- HTTP ------------------------------------------------------------------------------------------------

http() { curl --silent --show-error --max-time 60 "$@"; }

status_of() { http --output /dev/null --write-out '%{http_code}' "$@"; }

# header NAME URL [curl options]: one header of the answer, without the name.
header() {
  local name=$1; shift
  http --output /dev/null --dump-header - "$@" | tr -d '\r' |
    awk -v want="${name,,}:" 'tolower($1) == want { sub(/^[^:]*: */, ""); print }'
}

digest_of() { echo "sha256:$(sha256sum <"${1:-/dev/stdin}" | cut -d' ' -f1)"; }
