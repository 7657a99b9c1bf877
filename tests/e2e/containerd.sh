# containerd with the hosts.toml files that Pierhead writes: the image's own name is pulled, and the mirror knows
# the registry by the 'ns' parameter alone.

containerd_main() {
  upstreams_start
  mirror_fresh
  check "containerd: 'client containerd --write' writes hosts.toml files" hosts_written
  containerd_start
  check "containerd: pulls from $HUB by ns and runs it" containerd_pulls "$HUB" "$HUB_GREETING"
  check "containerd: pulls the same name from $OTHER by ns and runs the other image" containerd_pulls "$OTHER" "$OTHER_GREETING"
  check "containerd: a second pull makes no blob GET upstream" containerd_second_pull
  upstreams_stop
  check "containerd: pulls with the upstream stopped" containerd_pulls "$HUB" "$HUB_GREETING"
  mirror_restart
  check "containerd: pulls after a restart, upstream stopped ($HUB)" containerd_pulls "$HUB" "$HUB_GREETING"
  check "containerd: pulls after a restart, upstream stopped ($OTHER)" containerd_pulls "$OTHER" "$OTHER_GREETING"
  stop containerd
}

hosts_written() {
  "$PIERHEAD" client containerd --config "$MIRROR_CONFIG" --write "$WORK/hosts"
  expect_match "$HUB" "$(cat "$WORK/hosts/$HUB/hosts.toml")" "$MIRROR_HOST"
  expect_match "$OTHER" "$(cat "$WORK/hosts/$OTHER/hosts.toml")" "$MIRROR_HOST"
}

# The daemon with its own directories and socket; CRI is off, ctr needs none of it.
containerd_start() {
  cat >"$WORK/containerd.toml" <<TOML
version = 2
root = "$WORK/containerd"
state = "$RUN/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$RUN/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$WORK/containerd-opt"
TOML
  start containerd containerd --config "$WORK/containerd.toml"
  wait_for "containerd to answer" 20 ct version
}

ct() { timeout 60 ctr --address "$RUN/containerd.sock" --namespace e2e "$@"; }

# containerd_pulls REGISTRY GREETING: pulls into an empty store, runs, and removes the content again.
containerd_pulls() {
  local image=$1/$IMAGE:$TAG
  tags_expire
  ct image pull --hosts-dir "$WORK/hosts" "$image"
  expect_equal greeting "$(ct run --rm "$image" "greeting-$RANDOM")" "$2"
  ct image rm --sync "$image"
  expect_equal "content left" "$(ct content ls --quiet)" ""
}

containerd_second_pull() {
  local mark; mark=$(upstream_mark hub)
  containerd_pulls "$HUB" "$HUB_GREETING"
  expect_no_blob_get "$mark"
  expect_blobs_held
}
