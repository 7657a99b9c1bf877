# podman, twice: addressing the mirror by path prefix, and by the registries.conf that Pierhead prints, with the
# images' own names.

podman_main() {
  upstreams_start
  mirror_fresh
  check "podman: pulls by path prefix from $HUB and runs it" podman_pulls "$MIRROR_HOST/$HUB/$IMAGE:$TAG" "$HUB_GREETING"
  check "podman: pulls the same name from $OTHER and runs the other image" podman_pulls "$MIRROR_HOST/$OTHER/$IMAGE:$TAG" "$OTHER_GREETING"
  check "podman: a second pull makes no blob GET upstream" podman_second_pull
  check "podman: pulls by the registries.conf that 'client podman' prints" podman_with_printed_configuration
  upstreams_stop
  check "podman: pulls with the upstream stopped" podman_pulls "$MIRROR_HOST/$HUB/$IMAGE:$TAG" "$HUB_GREETING"
  mirror_restart
  check "podman: pulls after a restart, upstream stopped ($HUB)" podman_pulls "$MIRROR_HOST/$HUB/$IMAGE:$TAG" "$HUB_GREETING"
  check "podman: pulls after a restart, upstream stopped ($OTHER)" podman_pulls "$MIRROR_HOST/$OTHER/$IMAGE:$TAG" "$OTHER_GREETING"
}

# Its own storage, and none of the machine's configuration of registries. runc, because Debian's crun refuses
# a machine that has both generations of cgroups.
pod() {
  : >>"$WORK/registries.conf"
  CONTAINERS_REGISTRIES_CONF=${REGISTRIES_CONF:-$WORK/registries.conf} timeout 60 \
    podman --root "$WORK/podman" --runroot "$RUN/podman" --tmpdir "$RUN/podman-tmp" --storage-driver overlay \
    --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
}

# podman_pulls IMAGE GREETING: pulls into an empty store, runs, and removes it again.
# The limits: podman would raise them, which a build machine may refuse even to root.
podman_pulls() {
  tags_expire
  pod pull --quiet --tls-verify=false --signature-policy "$WORK/policy.json" "$1"
  expect_equal greeting "$(pod run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$1")" "$2"
  pod rmi --all --force
}

podman_second_pull() {
  local mark; mark=$(upstream_mark hub)
  podman_pulls "$MIRROR_HOST/$HUB/$IMAGE:$TAG" "$HUB_GREETING"
  expect_no_blob_get "$mark"
  expect_blobs_held
}

podman_with_printed_configuration() {
  "$PIERHEAD" client podman --config "$MIRROR_CONFIG" >"$WORK/printed-registries.conf"
  export REGISTRIES_CONF=$WORK/printed-registries.conf
  podman_pulls "$HUB/$IMAGE:$TAG" "$HUB_GREETING"
  podman_pulls "$OTHER/$IMAGE:$TAG" "$OTHER_GREETING"
}
