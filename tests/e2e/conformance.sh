# The OCI distribution specification, as far as a pull-only mirror owes it, over a repository in docker-registry.
#
# The checks here are our own, taken from the specification and from what the OCI conformance program asks; that
# program's read-only mode compares no bytes and skips ranges, these do both. The program itself runs as well where it
# is on the path as oci-conformance or named by OCI_CONFORMANCE: read-only against the same repository, and with
# every API that it knows against a hosted one. Its reports are kept under target/conformance.

REPO=conformance/pull
OCI_IMAGE=application/vnd.oci.image.manifest.v1+json
OCI_INDEX=application/vnd.oci.image.index.v1+json
SBOM=application/vnd.example.sbom
SIGNATURE=application/vnd.example.signature
MISSING=sha256:$(printf 'f%.0s' {1..64})

conformance_main() {
  upstreams_start
  mirror_fresh
  SEED=$WORK/seed
  mkdir -p "$SEED"
  conformance_seed
  check "conformance: GET /v2/" ping_answers
  check "conformance: manifests by tag and digest, HEAD and GET" manifests_are_exact
  check "conformance: blobs, HEAD and GET, an empty one too" blobs_are_exact
  check "conformance: ranges of a 2048 byte blob" blob_ranges
  check "conformance: tags, whole and in pages" tags_are_listed
  check "conformance: referrers from the fallback tag of an upstream without the API" referrers_from_fallback_tag
  check "conformance: referrers filtered by artifactType" referrers_filtered
  check "conformance: referrers of an unknown digest are an empty index" referrers_of_nothing
  check "conformance: what is missing or malformed has the right error" errors_are_right
  check "conformance: pushes and deletes are refused" writes_are_refused
  OCI_CONFORMANCE=${OCI_CONFORMANCE:-$(command -v oci-conformance || true)}
  if [ -n "$OCI_CONFORMANCE" ]; then
    check "conformance: the OCI program, read-only" oci_program
    check "conformance: the OCI program, with every API, on a hosted repository" oci_program_hosted
  else
    skip "conformance: the OCI program" "not on the path, and \$OCI_CONFORMANCE names none"
  fi
}

# ---- content ---------------------------------------------------------------------------------------------

# An image, an index, a manifest of 3.9 MB, and two artifacts that refer to the image. docker-registry 2.8 has no
# referrers API, so, as the specification says, the client keeps an index under the tag sha256-<hex>.
conformance_seed() {
  printf '{}' >"$SEED/config"
  head -c 2048 /dev/urandom >"$SEED/layer"
  : >"$SEED/empty"
  CONFIG=$(blob_push "$HUB_URL" "$REPO" "$SEED/config")
  LAYER=$(blob_push "$HUB_URL" "$REPO" "$SEED/layer")
  EMPTY=$(blob_push "$HUB_URL" "$REPO" "$SEED/empty")

  image_manifest >"$SEED/image"
  IMAGE_DIGEST=$(push_all "$OCI_IMAGE" image one two three)
  image_manifest | jq -c --arg pad "$(printf 'A%.0s' {1..10000})" \
    '.annotations = ([range(390) | {key: "large-\(.)", value: $pad}] | from_entries)' >"$SEED/large"
  LARGE_DIGEST=$(push_all "$OCI_IMAGE" large)
  artifact "$SBOM" >"$SEED/sbom"
  SBOM_DIGEST=$(push_all "$OCI_IMAGE" sbom)
  artifact "$SIGNATURE" >"$SEED/signature"
  SIGNATURE_DIGEST=$(push_all "$OCI_IMAGE" signature)

  index "$(descriptor image)" >"$SEED/index"
  INDEX_DIGEST=$(push_all "$OCI_INDEX" index)
  index "$(descriptor sbom "$SBOM")" "$(descriptor signature "$SIGNATURE")" >"$SEED/referrers"
  manifest_push "$HUB_URL" "$REPO" "${IMAGE_DIGEST/:/-}" "$OCI_INDEX" "$SEED/referrers" >/dev/null
}

# push_all TYPE FILE [TAG…]: pushes a manifest under its own name and further tags, prints the digest once.
push_all() {
  local type=$1 file=$2 tag; shift 2
  for tag in "$file" "$@"; do manifest_push "$HUB_URL" "$REPO" "$tag" "$type" "$SEED/$file"; done | tail -n 1
}

image_manifest() {
  jq -nc --arg type "$OCI_IMAGE" --arg config "$CONFIG" --arg layer "$LAYER" '{
    schemaVersion: 2, mediaType: $type,
    config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $config, size: 2},
    layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $layer, size: 2048}]}'
}

# artifact TYPE: a manifest whose subject is the image.
artifact() {
  image_manifest | jq -c --arg type "$1" --argjson subject "$(descriptor image)" '
    .artifactType = $type | .subject = $subject | .config.mediaType = "application/vnd.oci.empty.v1+json"'
}

# descriptor FILE [ARTIFACT_TYPE]
descriptor() {
  jq -nc --arg media "$OCI_IMAGE" --arg digest "$(digest_of "$SEED/$1")" --argjson size "$(wc -c <"$SEED/$1")" \
    --arg type "${2:-}" '{mediaType: $media, digest: $digest, size: $size} + if $type == "" then {} else {artifactType: $type} end'
}

# index DESCRIPTOR…
index() { jq -sc --arg type "$OCI_INDEX" '{schemaVersion: 2, mediaType: $type, manifests: .}' <<<"$*"; }

# ---- checks ----------------------------------------------------------------------------------------------

mirror() { echo "$MIRROR_URL/v2/$REPO/$1"; }

# Two Accept lines, as the conformance program sends them: a server that reads only the first fails here.
accept=(--header "Accept: $OCI_INDEX" --header "Accept: $OCI_IMAGE")

ping_answers() { expect_equal status "$(status_of "$MIRROR_URL/v2/")" 200; }

manifests_are_exact() {
  manifest_is_exact image "$OCI_IMAGE" "$IMAGE_DIGEST"
  manifest_is_exact index "$OCI_INDEX" "$INDEX_DIGEST"
  manifest_is_exact sbom "$OCI_IMAGE" "$SBOM_DIGEST"
  manifest_is_exact large "$OCI_IMAGE" "$LARGE_DIGEST"
}

# manifest_is_exact FILE TYPE DIGEST: asked by digest and by tag, HEAD first (a miss), then GET, then HEAD (a hit).
manifest_is_exact() {
  local reference method
  for reference in "$3" "$1"; do
    for method in --head --get --head; do
      expect_equal "Content-Type of $1" "$(header content-type $method "${accept[@]}" "$(mirror "manifests/$reference")")" "$2"
      expect_equal "Content-Length of $1" "$(header content-length $method "${accept[@]}" "$(mirror "manifests/$reference")")" "$(wc -c <"$SEED/$1")"
      expect_equal "digest of $1" "$(header docker-content-digest $method "${accept[@]}" "$(mirror "manifests/$reference")")" "$3"
    done
    http --fail "${accept[@]}" "$(mirror "manifests/$reference")" | cmp - "$SEED/$1"
  done
}

blobs_are_exact() {
  local file
  for file in layer empty config; do
    local url; url=$(mirror "blobs/$(digest_of "$SEED/$file")")
    expect_equal "HEAD of $file" "$(status_of --head "$url")" 200
    expect_equal "Content-Length of $file" "$(header content-length --head "$url")" "$(wc -c <"$SEED/$file")"
    http --fail "$url" | cmp - "$SEED/$file"
    expect_equal "Content-Length of $file, held" "$(header content-length --head "$url")" "$(wc -c <"$SEED/$file")"
    expect_equal "digest of $file" "$(header docker-content-digest --head "$url")" "$(digest_of "$SEED/$file")"
  done
}

blob_ranges() {
  blob_range 500-1499 500 1499
  blob_range 500- 500 2047
  blob_range -500 1548 2047
  blob_range 2000-5000 2000 2047
  blob_range_refused 500-0
  blob_range_refused 5000-10000
}

# blob_range RANGE FIRST LAST: the bytes FIRST to LAST come back.
blob_range() {
  local url length=$(($3 - $2 + 1)); url=$(mirror "blobs/$LAYER")
  expect_equal "status of $1" "$(status_of --range "$1" "$url")" 206
  expect_equal "Content-Range of $1" "$(header content-range --range "$1" "$url")" "bytes $2-$3/2048"
  expect_equal "Content-Length of $1" "$(header content-length --range "$1" "$url")" "$length"
  http --range "$1" "$url" | cmp - <(tail -c "+$(($2 + 1))" "$SEED/layer" | head -c "$length")
}

# curl checks --range itself, so a range that makes no sense goes as a plain header.
blob_range_refused() {
  local url; url=$(mirror "blobs/$LAYER")
  expect_equal "status of $1" "$(status_of --header "Range: bytes=$1" "$url")" 416
  expect_equal "Content-Range of $1" "$(header content-range --header "Range: bytes=$1" "$url")" "bytes */2048"
}

# docker-registry 2.8 knows neither n nor last and sends all tags at once: the mirror has to cut the pages itself.
# They are followed by their Link from the path with the registry's name: the link must lead back to it.
tags_are_listed() {
  local all url page tags="" pages=0
  all=$(http --fail "$HUB_URL/v2/$REPO/tags/list" | jq -c '.tags | sort')
  expect_equal "all tags" "$(http --fail "$(mirror tags/list)" | jq -c '.tags | sort')" "$all"
  expect_equal "the name" "$(http --fail "$(mirror tags/list)" | jq -r .name)" "$REPO"
  url="$MIRROR_URL/v2/$HUB/$REPO/tags/list?n=3"
  while [ -n "$url" ]; do
    pages=$((pages + 1))
    [ "$pages" -le 10 ] || fail "more pages than tags"
    page=$(http --fail "$url" | jq -c '.tags[]')
    [ "$(wc -l <<<"$page")" -le 3 ] || fail "more than n=3 tags on a page: $page"
    tags+=$page$'\n'
    url=$(header link "$url" | sed -n 's/^<\([^>]*\)>.*/\1/p')
    [ -z "$url" ] || [[ $url == http* ]] || url=$MIRROR_URL$url
  done
  expect_equal "the pages together" "$(jq -sc . <<<"$tags")" "$all"
  expect_equal "after 'one'" "$(http --fail "$(mirror 'tags/list?last=one')" | jq -c .tags)" \
    "$(jq -c 'map(select(. > "one"))' <<<"$all")"
  expect_equal "none of them" "$(http --fail "$(mirror 'tags/list?n=0')" | jq -c .tags)" "[]"
}

referrers_from_fallback_tag() {
  local url; url=$(mirror "referrers/$IMAGE_DIGEST")
  expect_equal "the upstream's own API" "$(status_of "$HUB_URL/v2/$REPO/referrers/$IMAGE_DIGEST")" 404
  expect_equal status "$(status_of "$url")" 200
  expect_equal Content-Type "$(header content-type "$url")" "$OCI_INDEX"
  expect_equal referrers "$(http "$url" | jq -c '[.manifests[].digest] | sort')" \
    "$(jq -nc --arg a "$SBOM_DIGEST" --arg b "$SIGNATURE_DIGEST" '[$a, $b] | sort')"
  expect_equal "media type" "$(http "$url" | jq -r '"\(.schemaVersion) \(.mediaType)"')" "2 $OCI_INDEX"
}

referrers_filtered() {
  local url; url=$(mirror "referrers/$IMAGE_DIGEST?artifactType=$SBOM")
  expect_equal OCI-Filters-Applied "$(header oci-filters-applied "$url")" artifactType
  expect_equal referrers "$(http --fail "$url" | jq -r '.manifests[].digest')" "$SBOM_DIGEST"
}

referrers_of_nothing() {
  local url; url=$(mirror "referrers/$MISSING")
  expect_equal status "$(status_of "$url")" 200
  expect_equal Content-Type "$(header content-type "$url")" "$OCI_INDEX"
  expect_equal manifests "$(http "$url" | jq -c .manifests)" "[]"
}

errors_are_right() {
  error_is "manifests/$MISSING" 404 MANIFEST_UNKNOWN
  error_is manifests/no-such-tag 404 MANIFEST_UNKNOWN
  error_is "blobs/$MISSING" 404 BLOB_UNKNOWN
  error_is blobs/sha256:baddigeststring '40[04]' .
  error_is manifests/sha256:baddigeststring '40[04]' .
  error_is no/such/route 404 .
}

# error_is PATH STATUS CODE: both are patterns. Every error is the specification's JSON.
error_is() {
  local url; url=$(mirror "$1")
  expect_match "status of $1" "$(status_of "${accept[@]}" "$url")" "^$2\$"
  expect_match "type of $1" "$(header content-type "${accept[@]}" "$url")" '^application/json'
  expect_match "code of $1" "$(http "${accept[@]}" "$url" | jq -r '.errors[0].code')" "^$3"
}

writes_are_refused() {
  local mark status; mark=$(upstream_mark hub)
  for status in "$(status_of --request POST "$(mirror blobs/uploads/)")" \
    "$(status_of --upload-file "$SEED/image" --header "Content-Type: $OCI_IMAGE" "$(mirror manifests/new)")" \
    "$(status_of --request DELETE "$(mirror "manifests/$IMAGE_DIGEST")")" \
    "$(status_of --request DELETE "$(mirror "blobs/$LAYER")")"; do
    expect_match "status of a write" "$status" '^4(0[1345])$'
  done
  expect_equal "writes upstream" "$(upstream_requests hub '(POST|PUT|PATCH|DELETE)' '' "$mark")" 0
}

# ---- the OCI program -------------------------------------------------------------------------------------

# Read-only, the program compares nothing, so a pass is only a part of the proof. Its exit code is no use in this
# mode: it ends in a panic while it writes results.yaml, after its report has been printed. The report is judged.
oci_program() {
  oci_run mirror OCI_REGISTRY="$MIRROR_HOST" OCI_VERSION=1.1 OCI_REPO1="$REPO" OCI_REPO2="$IMAGE" OCI_API_PUSH=false \
    OCI_API_TAGS_DELETE=false OCI_API_MANIFESTS_DELETE=false OCI_API_BLOBS_DELETE=false \
    OCI_RO_DATA_TAGS="image index sbom large" OCI_RO_DATA_BLOBS="$CONFIG $LAYER $EMPTY" \
    OCI_RO_DATA_MANIFESTS="$IMAGE_DIGEST $INDEX_DIGEST $LARGE_DIGEST $SBOM_DIGEST" \
    OCI_RO_DATA_REFERRERS="$IMAGE_DIGEST $INDEX_DIGEST"
  expect_match "the report" "$(cat "$ROOT/target/conformance/mirror/report")" 'Read Only Inputs\.*: *Pass'
}

# OCI_VERSION=dev switches on what 1.1 has not: deletes, digest headers, tag parameters, sha512.
oci_program_hosted() {
  local host
  host=127.0.0.1:$(free_port)
  cat >"$WORK/conformance.yaml" <<YAML
listen: $host
admin: 127.0.0.1:$(free_port)
cache: {path: $WORK/conformance, min_free: 0%}
hosted: {repositories: ["conformance/**"], sparse: true, gc_grace: 0s, gc_interval: 0s}
YAML
  start conformance "$PIERHEAD" serve --config "$WORK/conformance.yaml"
  wait_for "the registry to answer" 10 http --fail "http://$host/v2/"
  oci_run hosted OCI_REGISTRY="$host" OCI_VERSION=dev OCI_DATA_SPARSE=true OCI_API_BLOBS_DIGEST_HEADER=true \
    OCI_API_BLOBS_UPLOAD_CANCEL=true OCI_API_MANIFESTS_DIGEST_HEADER=true OCI_API_MANIFESTS_TAG_PARAM=true
  stop conformance
}

# oci_run NAME VARIABLE=VALUE…: runs the program; nothing that it tests may fail.
oci_run() {
  local results=$ROOT/target/conformance/$1; shift
  mkdir -p "$results"
  cd "$results" || return
  env "$@" OCI_TLS=disabled OCI_RESULTS_DIR="$results" timeout 300 "$OCI_CONFORMANCE" >report 2>log || true
  cat report
  grep 'failed test' log || true
  expect_match "the report" "$(cat report)" ': *Pass'
  ! grep -E ': *(FAIL|Error)' report
}
