# A newcomer's day: the very lines of README.md, "A registry of one's own", one after the other, on other ports.
# What the README shows of their output has to come.

NEWCOMER_PORT=$(free_port)
NEWCOMER_ADMIN_PORT=$(free_port)

newcomer_main() {
  upstreams_start
  newcomer_dockerd
  check "newcomer: the README's day of a registry, line by line" newcomer_day
  stop dockerd
}

newcomer_dockerd() {
  cat >"$WORK/newcomer-daemon.json" <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false,
  "data-root": "$WORK/docker-newcomer", "exec-root": "$RUN/docker-newcomer", "pidfile": "$RUN/dockerd-newcomer.pid",
  "hosts": ["unix://$RUN/docker-newcomer.sock"]
}
JSON
  start dockerd dockerd --config-file "$WORK/newcomer-daemon.json"
  export DOCKER_HOST=unix://$RUN/docker-newcomer.sock DOCKER_CONFIG=$WORK/docker-config
  wait_for "dockerd to answer" 30 docker info
}

# The lines of the block, as they stand there.
newcomer_lines() { awk '/^## A registry of one/ {on = 1} on && /^```$/ {exit} on && open {print} on && /^```console/ {open = 1}' "$ROOT/README.md"; }

# A shell with job control, as the newcomer's: `kill %1` is one of the lines. A person waits until what was started is there.
newcomer_day() {
  local line
  docker pull --quiet "127.0.0.1:$HUB_PORT/$IMAGE:$TAG"
  docker tag "127.0.0.1:$HUB_PORT/$IMAGE:$TAG" app
  mkdir -p "$WORK/newcomer/bin"
  ln -sf "$PIERHEAD" "$WORK/newcomer/bin/pierhead"
  : >"$WORK/newcomer/said"
  {
    # What the newcomer leaves running ends with the day, however that ends.
    echo 'set -eu; trap '\''kill $!; wait'\'' EXIT'
    while IFS= read -r line; do
      case $line in
        '$ '*)
          line=${line#'$ '}
          echo "${line//localhost:5000/127.0.0.1:$NEWCOMER_PORT}"
          [[ ! ${line%%#*} =~ '&'\ *$ ]] || echo "until curl --silent --fail --output /dev/null http://127.0.0.1:$NEWCOMER_PORT/v2/; do sleep 0.2; done" ;;
        ?*) printf '%s\n' "$line" >>"$WORK/newcomer/shown" ;;
      esac
    done < <(newcomer_lines)
  } >"$WORK/newcomer/day.sh"
  cat "$WORK/newcomer/day.sh"
  grep -c . "$WORK/newcomer/shown"
  (
    cd "$WORK/newcomer"
    export PATH=$WORK/newcomer/bin:$PATH PIERHEAD_LISTEN=127.0.0.1:$NEWCOMER_PORT PIERHEAD_ADMIN=127.0.0.1:$NEWCOMER_ADMIN_PORT
    timeout 120 bash -m day.sh >said 2>&1
  ) || { cat "$WORK/newcomer/said"; fail "the day ended early"; }
  cat "$WORK/newcomer/said"
  while IFS= read -r line; do grep -qF -- "$line" "$WORK/newcomer/said" || fail "the README shows '$line', which did not come"; done <"$WORK/newcomer/shown"
  # What was deleted and collected is gone from the disk.
  expect_equal "blobs that are left" "$(find "$WORK/newcomer/pierhead-data/blobs" -type f | wc -l)" 0
}
