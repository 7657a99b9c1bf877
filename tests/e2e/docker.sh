# dockerd with "registry-mirrors": it asks the mirror for library/… without naming a registry.

docker_main() {
  upstreams_start
  mirror_fresh
  check "docker: 'client docker' prints a daemon.json that names the mirror" daemon_json_printed
  dockerd_start
  check "docker: pulls library/… through the mirror" docker_pulls "$TAG"
  check "docker: runs it" docker_runs "$TAG"
  check "docker: pulls a Docker schema 2 image and runs it" docker_pulls_and_runs schema2
  check "docker: a second pull makes no blob GET upstream" docker_second_pull
  upstreams_stop
  check "docker: pulls and runs with the upstream stopped" docker_pulls_and_runs "$TAG"
  mirror_restart
  check "docker: pulls and runs after a restart, upstream stopped" docker_pulls_and_runs "$TAG"
  check "docker: the same for the schema 2 image" docker_pulls_and_runs schema2
  stop dockerd
}

daemon_json_printed() {
  "$PIERHEAD" client docker --config "$MIRROR_CONFIG" | tee "$WORK/printed-daemon.json"
  expect_match registry-mirrors "$(jq -r '.["registry-mirrors"][]' "$WORK/printed-daemon.json")" "$MIRROR_HOST"
}

# Its own directories, socket and pidfile, and no network of its own: nothing of the machine's is touched.
# A mirror on 127.0.0.0/8 needs no "insecure-registries".
dockerd_start() {
  cat >"$WORK/daemon.json" <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false,
  "data-root": "$WORK/docker", "exec-root": "$RUN/docker", "pidfile": "$RUN/dockerd-own.pid",
  "hosts": ["unix://$RUN/docker.sock"],
  "registry-mirrors": ["$MIRROR_URL"]
}
JSON
  rm -f "$RUN/dockerd-own.pid"
  start dockerd dockerd --config-file "$WORK/daemon.json"
  wait_for "dockerd to answer" 30 dock info
}

dock() { DOCKER_CONFIG=$WORK/docker-config timeout 90 docker --host "unix://$RUN/docker.sock" "$@"; }

# The name a user types; dockerd makes docker.io/library/… of it.
docker_image() { echo "${IMAGE#library/}:$1"; }

docker_pulls() {
  tags_expire
  dock pull --quiet "$(docker_image "$1")"
}

docker_runs() {
  expect_equal greeting "$(dock run --rm --network none "$(docker_image "$1")")" "$HUB_GREETING"
}

# With the last image the layers go too: the next pull has to download all of it again.
docker_forgets() {
  dock images --all --quiet | sort -u | xargs --no-run-if-empty docker --host "unix://$RUN/docker.sock" rmi --force
  expect_equal "images left" "$(dock images --all --quiet | wc -l)" 0
}

docker_pulls_and_runs() {
  docker_forgets
  docker_pulls "$1"
  docker_runs "$1"
  docker_forgets
}

docker_second_pull() {
  local mark; mark=$(upstream_mark hub)
  docker_pulls_and_runs "$TAG"
  expect_no_blob_get "$mark"
  expect_blobs_held
}
