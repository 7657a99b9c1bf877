# A registry of one's own: real clients push to it and pull the same digest back. What is pushed is never
# asked upstream; what a tag no longer holds goes with `pierhead gc`.
# crane, helm and oras are taken from the path where they are; without them their checks are skipped.

HOME_PORT=$(free_port)
HOME_ADMIN_PORT=$(free_port)
HOME_HOST=127.0.0.1:$HOME_PORT
HOME_URL=http://$HOME_HOST

push_main() {
  upstreams_start
  home_start
  images_pull_in
  check "push: buildah pushes and pulls back the same digest" push_buildah
  check "push: podman pulls it, runs it, pushes it under another name" push_podman
  check "push: skopeo copies an index with all its images" push_skopeo
  check "push: a second push sends no layer again" push_twice
  dockerd_for_home
  check "push: dockerd tags, pushes, forgets, pulls and runs" push_docker
  stop dockerd
  if command -v crane >/dev/null; then
    check "push: crane copies, lists, deletes" push_crane
  else
    skip "push: crane" "not on the path"
  fi
  if command -v helm >/dev/null; then
    check "push: helm pushes and pulls a chart" push_helm
  else
    skip "push: helm" "not on the path"
  fi
  check "push: an artifact with a subject is found by referrers" push_artifact
  if command -v oras >/dev/null; then
    check "push: oras attaches and discovers" push_oras
  else
    skip "push: oras" "not on the path"
  fi
  check "push: a full disk refuses, and takes again once there is room" push_full_disk
  home_restart
  check "push: after a restart it is all there" push_still_there
  check "push: what no tag holds goes with gc, and nothing else" push_gc
  check "push: the upstreams saw none of it" push_unseen
}

home_start() {
  cat >"$WORK/home.yaml" <<YAML
listen: $HOME_HOST
admin: 127.0.0.1:$HOME_ADMIN_PORT
cache: {path: $WORK/home, min_free: 0%}
default_upstream: $HUB
upstreams:
  $HUB: {endpoints: [$HUB_URL]}
hosted: {repositories: ["*", "team/**"], gc_grace: 0s, gc_interval: 0s}
YAML
  MARK=$(upstream_mark hub)
  start home "$PIERHEAD" serve --config "$WORK/home.yaml"
  wait_for "the registry to answer" 10 http --fail "$HOME_URL/v2/"
}

home_restart() {
  stop home
  home_start
}

# The images that the upstream holds, in buildah's store, with the upstream out of the way again.
images_pull_in() {
  bud pull --quiet --tls-verify=false --policy always --signature-policy "$WORK/policy.json" "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" >/dev/null
  MARK=$(upstream_mark hub)
}

home_digest() { header docker-content-digest --head --header "Accept: $MANIFEST_TYPES" "$HOME_URL/v2/$1/manifests/$2"; }

push_buildah() {
  bud push --quiet --tls-verify=false --signature-policy "$WORK/policy.json" --digestfile "$WORK/pushed" \
    "127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$HOME_HOST/app:1"
  expect_equal "digest" "$(home_digest app 1)" "$(cat "$WORK/pushed")"
  bud rmi --all --force
  bud pull --quiet --tls-verify=false --signature-policy "$WORK/policy.json" "docker://$HOME_HOST/app:1"
}

push_podman() {
  pod_home pull --quiet --tls-verify=false --signature-policy "$WORK/policy.json" "$HOME_HOST/app:1"
  expect_equal greeting "$(pod_home run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$HOME_HOST/app:1")" "$HUB_GREETING"
  pod_home push --quiet --tls-verify=false --signature-policy "$WORK/policy.json" --digestfile "$WORK/pushed" \
    "$HOME_HOST/app:1" "docker://$HOME_HOST/team/podman:1"
  expect_equal digest "$(home_digest team/podman 1)" "$(cat "$WORK/pushed")"
  pod_home rmi --all --force
  pod_home pull --quiet --tls-verify=false --signature-policy "$WORK/policy.json" "$HOME_HOST/team/podman@$(cat "$WORK/pushed")"
  pod_home rmi --all --force
}

pod_home() {
  : >"$WORK/home-registries.conf"
  CONTAINERS_REGISTRIES_CONF=$WORK/home-registries.conf timeout 60 \
    podman --root "$WORK/podman" --runroot "$RUN/podman" --tmpdir "$RUN/podman-tmp" --storage-driver overlay \
    --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
}

skop_home() { timeout 60 skopeo --policy "$WORK/policy.json" --tmpdir "$WORK" "$@"; }

push_skopeo() {
  local digest; digest=$(header docker-content-digest --head --header "Accept: $MANIFEST_TYPES" "$HUB_URL/v2/$IMAGE/manifests/$TAG")
  skop_home copy --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false \
    "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$HOME_HOST/team/skopeo:1"
  expect_equal digest "$(home_digest team/skopeo 1)" "$digest"
  skop_home copy --all --preserve-digests --src-tls-verify=false "docker://$HOME_HOST/team/skopeo:1" "dir:$(mktemp -d "$WORK/skopeo.XXXXXX")"
  skop_home copy --src-tls-verify=false --dest-tls-verify=false --format v2s2 "docker://$HOME_HOST/team/skopeo:1" "docker://$HOME_HOST/team/skopeo:schema2"
  expect_match tags "$(skop_home list-tags --tls-verify=false "docker://$HOME_HOST/team/skopeo" | jq -c .Tags)" '"1","schema2"'
  MARK=$(upstream_mark hub)
}

# The layers are mounted or found by HEAD: between the marks no upload is begun for longer than its first request.
push_twice() {
  local before after
  before=$(du -sb "$WORK/home/blobs" | cut -f1)
  skop_home copy --all --src-tls-verify=false --dest-tls-verify=false "docker://$HOME_HOST/team/skopeo:1" "docker://$HOME_HOST/team/copy:1"
  after=$(du -sb "$WORK/home/blobs" | cut -f1)
  [ $((after - before)) -lt 100000 ] || fail "a second push took $((after - before)) bytes"
}

dockerd_for_home() {
  cat >"$WORK/home-daemon.json" <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false,
  "data-root": "$WORK/docker-home", "exec-root": "$RUN/docker-home", "pidfile": "$RUN/dockerd-home.pid",
  "hosts": ["unix://$RUN/docker-home.sock"]
}
JSON
  start dockerd dockerd --config-file "$WORK/home-daemon.json"
  wait_for "dockerd to answer" 30 dock_home info
}

dock_home() { DOCKER_CONFIG=$WORK/docker-config timeout 90 docker --host "unix://$RUN/docker-home.sock" "$@"; }

push_docker() {
  local digest
  dock_home pull --quiet "$HOME_HOST/app:1"
  dock_home tag "$HOME_HOST/app:1" "$HOME_HOST/dock:1"
  dock_home push "$HOME_HOST/dock:1" | tee "$WORK/docker-push"
  digest=$(grep -o 'sha256:[0-9a-f]*' "$WORK/docker-push" | tail -1)
  expect_equal digest "$(home_digest dock 1)" "$digest"
  dock_home images --all --quiet | sort -u | xargs --no-run-if-empty docker --host "unix://$RUN/docker-home.sock" rmi --force
  dock_home pull --quiet "$HOME_HOST/dock@$digest"
  expect_equal greeting "$(dock_home run --rm --network none "$HOME_HOST/dock@$digest")" "$HUB_GREETING"
}

push_crane() {
  local digest; digest=$(home_digest app 1)
  crane copy --insecure "$HOME_HOST/app:1" "$HOME_HOST/team/crane:1"
  crane tag --insecure "$HOME_HOST/team/crane:1" two
  expect_equal digest "$(crane digest --insecure "$HOME_HOST/team/crane:two")" "$digest"
  expect_equal tags "$(crane ls --insecure "$HOME_HOST/team/crane" | tr '\n' ' ')" "1 two "
  expect_match catalog "$(crane catalog --insecure "$HOME_HOST")" team/crane
  crane pull --insecure "$HOME_HOST/team/crane:1" "$WORK/crane.tar"
  crane push --insecure "$WORK/crane.tar" "$HOME_HOST/team/crane:three"
  crane delete --insecure "$HOME_HOST/team/crane:two"
  expect_equal tags "$(crane ls --insecure "$HOME_HOST/team/crane" | tr '\n' ' ')" "1 three "
  crane validate --insecure --remote "$HOME_HOST/team/crane:1"
}

push_helm() {
  mkdir -p "$WORK/helm"
  cd "$WORK/helm" || return
  export HELM_CACHE_HOME=$WORK/helm/cache HELM_CONFIG_HOME=$WORK/helm/config HELM_DATA_HOME=$WORK/helm/data
  helm create chart
  helm package chart --version 1.2.3+build
  helm push --plain-http chart-1.2.3+build.tgz "oci://$HOME_HOST/team"
  mkdir pulled
  helm pull --plain-http "oci://$HOME_HOST/team/chart" --version 1.2.3+build --destination pulled
  cmp chart-1.2.3+build.tgz pulled/chart-1.2.3+build.tgz
}

push_artifact() {
  local subject size config manifest
  subject=$(home_digest app 1)
  size=$(header content-length --head --header "Accept: $MANIFEST_TYPES" "$HOME_URL/v2/app/manifests/1")
  printf '{}' >"$WORK/empty.json"
  config=$(blob_push_relative app "$WORK/empty.json")
  cat >"$WORK/artifact.json" <<JSON
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/x.sbom",
 "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "$config", "size": 2},
 "layers": [{"mediaType": "application/vnd.oci.empty.v1+json", "digest": "$config", "size": 2}],
 "subject": {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "$subject", "size": $size}}
JSON
  manifest=$(digest_of "$WORK/artifact.json")
  manifest_push "$HOME_URL" app "$manifest" application/vnd.oci.image.manifest.v1+json "$WORK/artifact.json"
  expect_equal referrer "$(http --fail "$HOME_URL/v2/app/referrers/$subject?artifactType=application/x.sbom" | jq -r '.manifests[].digest')" "$manifest"
}

# blob_push of fixtures.sh for a registry whose Location is relative and without a query.
blob_push_relative() {
  local digest location
  digest=$(digest_of "$2")
  location=$(header location --request POST "$HOME_URL/v2/$1/blobs/uploads/")
  http --fail --output /dev/null --upload-file "$2" "$HOME_URL$location?digest=$digest"
  echo "$digest"
}

push_oras() {
  cd "$WORK" || return
  echo "a bill of materials" >sbom.txt
  oras attach --plain-http --artifact-type application/x.oras "$HOME_HOST/app:1" sbom.txt:text/plain
  expect_match discovered "$(oras discover --plain-http --format json "$HOME_HOST/app:1" | jq -c .)" 'application/x.oras'
}

# A file system of 24 MiB: two layers of 8 MiB fit, four do not. What was refused comes again once there is room.
push_full_disk() {
  local port digest status n
  mkdir -p "$WORK/small"
  mount -t tmpfs -o size=24m tmpfs "$WORK/small" || { echo "no tmpfs here"; return 0; }
  port=$(free_port)
  cat >"$WORK/small.yaml" <<YAML
listen: 127.0.0.1:$port
admin: 127.0.0.1:$(free_port)
cache: {path: $WORK/small/data, min_free: 0%}
default_upstream: $HUB
upstreams: {$HUB: {endpoints: [$HUB_URL]}}
hosted: {repositories: ["*"], gc_grace: 0s, gc_interval: 0s}
YAML
  start small "$PIERHEAD" serve --config "$WORK/small.yaml"
  wait_for "the small registry to answer" 10 http --fail "http://127.0.0.1:$port/v2/"
  for n in 1 2 3 4; do
    head -c 8M /dev/urandom >"$WORK/layer$n"
    digest=$(digest_of "$WORK/layer$n")
    status=$(status_of --request POST --data-binary "@$WORK/layer$n" "http://127.0.0.1:$port/v2/app/blobs/uploads/?digest=$digest")
    echo "layer $n: $status"
    [ "$n" -gt 2 ] || expect_equal "layer $n" "$status" 201
  done
  expect_equal "the last layer" "$status" 507
  expect_equal "the last layer's HEAD" "$(status_of --head "http://127.0.0.1:$port/v2/app/blobs/$digest")" 404
  "$PIERHEAD" gc --config "$WORK/small.yaml"
  expect_equal "the last layer, again" "$(status_of --request POST --data-binary "@$WORK/layer4" "http://127.0.0.1:$port/v2/app/blobs/uploads/?digest=$digest")" 201
  expect_equal "its bytes" "$(http "http://127.0.0.1:$port/v2/app/blobs/$digest" | digest_of)" "$digest"
  stop small
  umount "$WORK/small"
}

push_still_there() {
  skop_home copy --all --src-tls-verify=false "docker://$HOME_HOST/team/skopeo:1" "dir:$(mktemp -d "$WORK/skopeo.XXXXXX")"
  expect_match referrers "$(http --fail "$HOME_URL/v2/app/referrers/$(home_digest app 1)" | jq -c .)" application/x.sbom
}

push_gc() {
  local dry
  http --fail --request DELETE --output /dev/null "$HOME_URL/v2/team/copy/manifests/1"
  dry=$("$PIERHEAD" gc --config "$WORK/home.yaml" --dry-run --json)
  expect_match "what would go" "$(jq -c '[.items[].repository] | unique' <<<"$dry")" 'team/copy'
  "$PIERHEAD" gc --config "$WORK/home.yaml"
  expect_equal "what would go then" "$("$PIERHEAD" gc --config "$WORK/home.yaml" --dry-run --json | jq '.items | length')" 0
  push_still_there
}

push_unseen() {
  expect_equal "requests upstream for hosted names" "$(grep -cE '"[A-Z]+ /v2/(library/)?(app|dock|team)' "$LOGS/hub.log" || true)" 0
}
