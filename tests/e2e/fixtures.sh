# What stands around the clients: two upstream registries (Debian's docker-registry), the images they hold,
# and the mirror before them.
#
# Both upstreams hold library/pierbox:1, with different content. Whatever picks the wrong upstream says so
# by printing the wrong greeting.

PIERHEAD=${PIERHEAD:-$ROOT/target/release/pierhead}
HUB=docker.io                  # the upstream that names without a registry mean
OTHER=reg.example.test         # a registry that exists only in the mirror's configuration
IMAGE=library/pierbox
TAG=1
HUB_GREETING="hello from $HUB"
OTHER_GREETING="hello from $OTHER"

HUB_PORT=$(free_port)
OTHER_PORT=$(free_port)
MIRROR_PORT=$(free_port)
ADMIN_PORT=$(free_port)
HUB_URL=http://127.0.0.1:$HUB_PORT
MIRROR_HOST=127.0.0.1:$MIRROR_PORT
MIRROR_URL=http://$MIRROR_HOST
ADMIN_URL=http://127.0.0.1:$ADMIN_PORT
MIRROR_CONFIG=$WORK/pierhead.yaml

MANIFEST_TYPES='application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json'

# ---- upstreams -------------------------------------------------------------------------------------------

# registry_config NAME PORT: the configuration of one docker-registry.
registry_config() {
  cat >"$WORK/$1.yml" <<YAML
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: $WORK/$1}
http: {addr: "127.0.0.1:$2"}
YAML
}

upstream_start() {
  running "$1" && return 0
  start "$1" docker-registry serve "$WORK/$1.yml"
  wait_for "$1 to answer" 10 http --fail "http://127.0.0.1:$2/v2/"
}

upstreams_start() { upstream_start hub "$HUB_PORT"; upstream_start other "$OTHER_PORT"; }
upstreams_stop() { stop hub; stop other; }

# upstream_requests NAME METHOD PATTERN [AFTER_LINE]: how many requests stand in the access log of an upstream.
# A line is written when its answer is over, a moment after the client has seen the end: hence the pause.
upstream_requests() {
  sleep 0.3
  tail -n "+$((${4:-0} + 1))" "$LOGS/$1.log" | grep -cE "\"$2 /v2/[^ ]*$3" || true
}

upstream_mark() { sleep 0.3; wc -l <"$LOGS/$1.log"; }

# expect_no_blob_get LINE: since that line of its access log the hub sent nobody a blob.
expect_no_blob_get() {
  expect_equal "blob GETs upstream" "$(upstream_requests hub GET /blobs/ "$1")" 0
}

# ---- images ----------------------------------------------------------------------------------------------

bud() { buildah --root "$WORK/buildah" --runroot "$RUN/buildah" --storage-driver vfs "$@"; }

images_build() {
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' >"$WORK/policy.json"
  registry_config hub "$HUB_PORT"
  registry_config other "$OTHER_PORT"
  upstreams_start
  base_build
  image_push hub "$HUB_PORT" "$HUB_GREETING"
  image_push other "$OTHER_PORT" "$OTHER_GREETING"
  bud rmi --all --force
}

# A first layer with a shell, from scratch: nothing is downloaded.
base_build() {
  local container
  container=$(bud from scratch)
  bud copy "$container" "$(command -v busybox)" /bin/busybox
  bud config --cmd '["/bin/busybox", "cat", "/greeting"]' "$container"
  bud commit --rm --signature-policy "$WORK/policy.json" "$container" base
}

# A second layer with the greeting and 8 MiB that do not compress; pushed as an OCI index with one image (:1)
# and as a plain Docker manifest (:schema2), the two forms that clients meet.
image_push() {
  local name=$1 port=$2 greeting=$3 container payload=$WORK/payload
  mkdir -p "$payload"
  echo "$greeting" >"$payload/greeting"
  head -c 8M /dev/urandom >"$payload/noise"
  container=$(bud from --signature-policy "$WORK/policy.json" --pull-never localhost/base)
  bud copy "$container" "$payload" /
  bud commit --rm --signature-policy "$WORK/policy.json" "$container" "$name"
  bud manifest create "$name-index"
  bud manifest add "$name-index" "localhost/$name"
  bud manifest push --quiet --all --tls-verify=false --signature-policy "$WORK/policy.json" \
    "$name-index" "docker://127.0.0.1:$port/$IMAGE:$TAG"
  bud push --quiet --tls-verify=false --signature-policy "$WORK/policy.json" --format v2s2 \
    "localhost/$name" "docker://127.0.0.1:$port/$IMAGE:schema2"
}

# blob_push URL REPOSITORY FILE: uploads a blob, prints its digest.
blob_push() {
  local digest location
  digest=$(digest_of "$3")
  location=$(header location --request POST "$1/v2/$2/blobs/uploads/")
  http --fail --output /dev/null --upload-file "$3" --header 'Content-Type: application/octet-stream' \
    "$location&digest=$digest"
  echo "$digest"
}

# manifest_push URL REPOSITORY REFERENCE TYPE FILE: uploads a manifest, prints its digest.
manifest_push() {
  http --fail --output /dev/null --upload-file "$5" --header "Content-Type: $4" "$1/v2/$2/manifests/$3"
  digest_of "$5"
}

# ---- the mirror ------------------------------------------------------------------------------------------

# A mirror that holds nothing. Tags are believed for a second only: a pull with the upstream stopped has to ask,
# fail to get an answer, and serve what is held.
mirror_fresh() {
  stop mirror
  local cache
  cache=$(mktemp -d "$WORK/cache.XXXXXX")
  cat >"$MIRROR_CONFIG" <<YAML
listen: $MIRROR_HOST
admin: 127.0.0.1:$ADMIN_PORT
cache:
  path: $cache
default_upstream: $HUB
upstreams:
  $HUB:
    endpoints: ["$HUB_URL"]
    tag_ttl: 1s
  $OTHER:
    endpoints: ["http://127.0.0.1:$OTHER_PORT"]
    tag_ttl: 1s
YAML
  mirror_start
}

mirror_start() {
  start mirror "$PIERHEAD" serve --config "$MIRROR_CONFIG"
  wait_for "the mirror to answer" 15 http --fail "$ADMIN_URL/healthz"
  wait_for "the pull port to answer" 15 http --fail "$MIRROR_URL/v2/"
}

mirror_restart() { stop mirror "${1:-TERM}"; mirror_start; }

# Tags asked for from now on have outlived their TTL.
tags_expire() { sleep 1.2; }

# Every blob of the hub's image is held: config and layers, as the mirror itself says.
expect_blobs_held() {
  local child digest
  child=$(http --fail --header "Accept: $MANIFEST_TYPES" "$MIRROR_URL/v2/$IMAGE/manifests/$TAG" | jq -r '.manifests[0].digest')
  for digest in $(http --fail --header "Accept: $MANIFEST_TYPES" "$MIRROR_URL/v2/$IMAGE/manifests/$child" |
    jq -r '.config.digest, .layers[].digest'); do
    expect_match "Cache-Status of $digest" "$(header cache-status --head "$MIRROR_URL/v2/$IMAGE/blobs/$digest")" 'pierhead; ?hit'
  done
  [ -n "$digest" ] || fail "the image lists no blobs"
}
