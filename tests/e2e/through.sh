# Pushes passed on to an upstream: real clients push through Pierhead to Debian's docker-registry, which asks
# for a password of its own, and pull the same digest back by the same address, as a hit.

THROUGH_PORT=$(free_port)
THROUGH_ADMIN_PORT=$(free_port)
THROUGH_HOST=127.0.0.1:$THROUGH_PORT
THROUGH_URL=http://$THROUGH_HOST
LOCKED_PORT=$(free_port)
LOCKED=locked.e2e.test
ALICE=alice:alice-secret-1

through_main() {
  upstreams_start
  locked_start
  through_start
  dockerd_start_for_through
  check "through: docker logs in, pushes, pulls back as a hit" through_docker
  check "through: a wrong password is told to docker, podman and skopeo" through_wrong
  stop dockerd
  check "through: skopeo pushes an index and pulls it back as a hit" through_skopeo
  check "through: buildah and podman push and pull back" through_buildah
  if command -v crane >/dev/null; then
    check "through: crane pushes, tags, deletes" through_crane
  else
    skip "through: crane" "not on the path"
  fi
  check "through: nobody pushes without a login" through_nobody
  check "through: the upstream that is not to be pushed to says why" through_read_only
  stop locked
  check "through: what was pushed is there with the upstream gone" through_gone
}

locked_start() {
  perl -e 'print "$ARGV[0]:", crypt($ARGV[1], q($2y$05$abcdefghijklmnopqrstuu)), "\n"' alice alice-secret-1 >"$WORK/locked-htpasswd"
  cat >"$WORK/locked.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $WORK/locked}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$LOCKED_PORT"}
auth: {htpasswd: {realm: locked, path: $WORK/locked-htpasswd}}
YAML
  start locked docker-registry serve "$WORK/locked.yml"
  wait_for "the locked registry to answer" 15 http "http://127.0.0.1:$LOCKED_PORT/"
}

through_start() {
  cat >"$WORK/through.yaml" <<YAML
listen: $THROUGH_HOST
admin: 127.0.0.1:$THROUGH_ADMIN_PORT
cache: {path: $WORK/through, min_free: 0%}
default_upstream: $LOCKED
upstreams:
  $LOCKED:
    endpoints: ["http://127.0.0.1:$LOCKED_PORT"]
    auth: {passthrough: {stale_for: 1h}}
    push: true
  $HUB: {endpoints: [$HUB_URL]}
hosted: {repositories: ["home/**"]}
YAML
  start through "$PIERHEAD" serve --config "$WORK/through.yaml"
  wait_for "the mirror to answer" 15 http "$THROUGH_URL/v2/"
}

dockerd_start_for_through() {
  cat >"$WORK/through-daemon.json" <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false,
  "data-root": "$WORK/docker-through", "exec-root": "$RUN/docker-through", "pidfile": "$RUN/dockerd-through.pid",
  "hosts": ["unix://$RUN/docker-through.sock"], "insecure-registries": ["127.0.0.0/8"]
}
JSON
  start dockerd dockerd --config-file "$WORK/through-daemon.json"
  wait_for "dockerd to answer" 30 dock_through info
}

dock_through() { DOCKER_CONFIG=$WORK/through-docker timeout 90 docker --host "unix://$RUN/docker-through.sock" "$@"; }
skop_through() { timeout 60 skopeo --policy "$WORK/policy.json" --tmpdir "$WORK" "$@"; }
pod_through() {
  : >"$WORK/through-registries.conf"
  CONTAINERS_REGISTRIES_CONF=$WORK/through-registries.conf timeout 60 \
    podman --root "$WORK/podman" --runroot "$RUN/podman" --tmpdir "$RUN/podman-tmp" --storage-driver overlay \
    --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
}

# through_digest REPOSITORY TAG: what Pierhead says it is; upstream_digest: what the registry itself says.
through_digest() { header docker-content-digest --head --user "$ALICE" --header "Accept: $MANIFEST_TYPES" "$THROUGH_URL/v2/$1/manifests/$2"; }
upstream_digest() { header docker-content-digest --head --user "$ALICE" --header "Accept: $MANIFEST_TYPES" "http://127.0.0.1:$LOCKED_PORT/v2/$1/manifests/$2"; }
# Blobs that were fetched from the locked registry, by its own account: one byte (206) is only a proof of a right.
locked_blob_gets() { grep -cE '"GET /v2/[^"]*/blobs/sha256[^"]*" 200' "$LOGS/locked.log" || true; }

# expect_hit REPOSITORY TAG DIGEST: the same digest on both sides, and manifest and layers are held.
expect_hit() {
  local digest blob
  expect_equal "digest upstream" "$(upstream_digest "$1" "$2")" "$3"
  expect_equal "digest here" "$(through_digest "$1" "$2")" "$3"
  for blob in $(http --fail --user "$ALICE" --header "Accept: $MANIFEST_TYPES" "$THROUGH_URL/v2/$1/manifests/$3" | jq -r '(.layers // [])[].digest'); do
    expect_match "Cache-Status of $blob" "$(header cache-status --user "$ALICE" "$THROUGH_URL/v2/$1/blobs/$blob")" 'pierhead; hit'
  done
}

through_docker() {
  local before digest
  before=$(locked_blob_gets)
  echo alice-secret-1 | dock_through login --username alice --password-stdin "$THROUGH_HOST"
  dock_through pull --quiet "127.0.0.1:$HUB_PORT/$IMAGE:schema2"
  dock_through tag "127.0.0.1:$HUB_PORT/$IMAGE:schema2" "$THROUGH_HOST/team/docker:1"
  dock_through push "$THROUGH_HOST/team/docker:1" | tee "$WORK/through-push"
  digest=$(grep -o 'sha256:[0-9a-f]*' "$WORK/through-push" | tail -1)
  expect_hit team/docker 1 "$digest"
  dock_through images --all --quiet | sort -u | xargs --no-run-if-empty docker --host "unix://$RUN/docker-through.sock" rmi --force
  dock_through pull --quiet "$THROUGH_HOST/team/docker@$digest"
  expect_equal greeting "$(dock_through run --rm --network none "$THROUGH_HOST/team/docker@$digest")" "$HUB_GREETING"
  expect_equal "blobs fetched upstream" "$(locked_blob_gets)" "$before"
  # By the upstream's own name, too; its layers are there, so none is sent.
  dock_through tag "$THROUGH_HOST/team/docker@$digest" "$THROUGH_HOST/$LOCKED/team/docker:2"
  dock_through push "$THROUGH_HOST/$LOCKED/team/docker:2"
  expect_hit team/docker 2 "$digest"
}

through_wrong() {
  ! echo wrong | dock_through login --username alice --password-stdin "$THROUGH_HOST" >"$WORK/wrong" 2>&1 || fail "docker let it in"
  expect_match docker "$(cat "$WORK/wrong")" 'unauthorized|401'
  ! echo wrong | pod_through login --authfile "$WORK/wrong.json" --tls-verify=false --username alice --password-stdin "$THROUGH_HOST" >"$WORK/wrong" 2>&1 || fail "podman let it in"
  expect_match podman "$(cat "$WORK/wrong")" 'invalid username/password|unauthorized'
  ! skop_through inspect --tls-verify=false --creds alice:wrong "docker://$THROUGH_HOST/team/docker:1" >"$WORK/wrong" 2>&1 || fail "skopeo let it in"
  expect_match skopeo "$(cat "$WORK/wrong")" 'invalid username/password|unauthorized'
}

through_skopeo() {
  local before digest
  before=$(locked_blob_gets)
  skop_through copy --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false --dest-creds "$ALICE" \
    "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$THROUGH_HOST/team/skopeo:1"
  digest=$(header docker-content-digest --head --header "Accept: $MANIFEST_TYPES" "$HUB_URL/v2/$IMAGE/manifests/$TAG")
  expect_hit team/skopeo 1 "$digest"
  skop_through copy --all --preserve-digests --src-tls-verify=false --src-creds "$ALICE" "docker://$THROUGH_HOST/team/skopeo:1" "dir:$(mktemp -d "$WORK/through.XXXXXX")"
  # From one repository of the upstream into another: mounted there.
  skop_through copy --all --src-tls-verify=false --dest-tls-verify=false --src-creds "$ALICE" --dest-creds "$ALICE" \
    "docker://$THROUGH_HOST/team/skopeo:1" "docker://$THROUGH_HOST/team/mounted:1"
  expect_hit team/mounted 1 "$digest"
  expect_equal "blobs fetched upstream" "$(locked_blob_gets)" "$before"
}

through_buildah() {
  bud pull --quiet --tls-verify=false --policy always --signature-policy "$WORK/policy.json" "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" >/dev/null
  bud push --quiet --tls-verify=false --creds "$ALICE" --signature-policy "$WORK/policy.json" --digestfile "$WORK/pushed" \
    "127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$THROUGH_HOST/team/buildah:1"
  expect_hit team/buildah 1 "$(cat "$WORK/pushed")"
  bud rmi --all --force
  pod_through pull --quiet --tls-verify=false --creds "$ALICE" --signature-policy "$WORK/policy.json" "$THROUGH_HOST/team/buildah:1"
  pod_through push --quiet --tls-verify=false --creds "$ALICE" --signature-policy "$WORK/policy.json" --digestfile "$WORK/pushed" \
    "$THROUGH_HOST/team/buildah:1" "docker://$THROUGH_HOST/team/podman:1"
  expect_hit team/podman 1 "$(cat "$WORK/pushed")"
  pod_through rmi --all --force
}

through_crane() {
  local digest
  export DOCKER_CONFIG=$WORK/through-crane
  crane auth login --insecure "$THROUGH_HOST" --username alice --password alice-secret-1
  crane copy --insecure "$HUB_URL_HOST/$IMAGE:schema2" "$THROUGH_HOST/team/crane:1"
  digest=$(crane digest --insecure "$THROUGH_HOST/team/crane:1")
  expect_hit team/crane 1 "$digest"
  crane tag --insecure "$THROUGH_HOST/team/crane:1" two
  expect_hit team/crane two "$digest"
  crane pull --insecure "$THROUGH_HOST/team/crane:two" "$WORK/through-crane.tar"
  crane push --insecure "$WORK/through-crane.tar" "$THROUGH_HOST/team/crane:three"
  crane validate --insecure --remote "$THROUGH_HOST/team/crane:three"
  crane delete --insecure "$THROUGH_HOST/team/crane@$digest"
  expect_equal "what was deleted" "$(status_of --user "$ALICE" --header "Accept: $MANIFEST_TYPES" "$THROUGH_URL/v2/team/crane/manifests/two")" 404
}
HUB_URL_HOST=127.0.0.1:$HUB_PORT

through_nobody() {
  expect_equal status "$(status_of --request POST "$THROUGH_URL/v2/team/docker/blobs/uploads/")" 401
  expect_match challenge "$(header www-authenticate --request POST "$THROUGH_URL/v2/team/docker/blobs/uploads/")" 'scope="repository:team/docker:pull,push"'
  expect_equal "status with a wrong password" "$(status_of --user alice:wrong --request POST "$THROUGH_URL/v2/team/docker/blobs/uploads/")" 401
}

through_read_only() {
  local said; said=$(http --request PUT "$THROUGH_URL/v2/$HUB/a/manifests/1")
  expect_match message "$said" 'push: true'
  expect_match message "$said" 'home/\*\*'
}

through_gone() {
  skop_through copy --all --src-tls-verify=false --src-creds "$ALICE" "docker://$THROUGH_HOST/team/skopeo:1" "dir:$(mktemp -d "$WORK/through.XXXXXX")"
  expect_equal "a push" "$(status_of --user "$ALICE" --request POST "$THROUGH_URL/v2/team/docker/blobs/uploads/")" 503
}
