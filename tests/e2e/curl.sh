# The mirror as plain HTTP shows it: what each answer says of the cache, one fetch for many clients, and what
# happens when the upstream is away.

CROWD=64
CROWD_BLOB_MIB=32

curl_main() {
  upstreams_start
  mirror_fresh
  check "curl: the admin address answers, and the pull port gives away no metrics" admin_answers
  check "curl: a tag goes from miss to hit" tag_miss_then_hit
  check "curl: HEAD of a blob that is not held downloads nothing" head_downloads_nothing
  check "curl: $CROWD clients at once on one cold $CROWD_BLOB_MIB MiB blob, one GET upstream" crowd_on_one_blob
  check "curl: ranges, one and several, are the right bytes" ranges_are_right
  check "curl: an unknown ns is NAME_UNKNOWN and nobody is asked" unknown_namespace
  upstreams_stop
  check "curl: upstream stopped, held content is served" held_content_is_served
  check "curl: upstream stopped, what is not held is 503 with Retry-After" unheld_content_is_503
  check "curl: SIGTERM ends the mirror with exit 0" mirror_stops_cleanly
  mirror_start
  check "curl: after a restart, upstream stopped, held content is served" held_content_is_served
  mirror_restart KILL
  check "curl: after kill -9, upstream stopped, held content is served" held_content_is_served
}

admin_answers() {
  expect_equal healthz "$(status_of "$ADMIN_URL/healthz")" 200
  expect_equal readyz "$(status_of "$ADMIN_URL/readyz")" 200
  expect_match metrics "$(http --fail "$ADMIN_URL/metrics")" '^pierhead_'
  expect_equal "metrics on the pull port" "$(http "$MIRROR_URL/metrics" | grep -c '^pierhead_' || true)" 0
}

manifest_header() { header "$1" --header "Accept: $MANIFEST_TYPES" "$MIRROR_URL/v2/$IMAGE/manifests/$TAG"; }

tag_miss_then_hit() {
  expect_match "first Cache-Status" "$(manifest_header cache-status)" 'pierhead;.*fwd='
  expect_match "second Cache-Status" "$(manifest_header cache-status)" 'pierhead; ?hit'
  expect_equal "digest" "$(manifest_header docker-content-digest)" \
    "$(header docker-content-digest --header "Accept: $MANIFEST_TYPES" "$HUB_URL/v2/$IMAGE/manifests/$TAG")"
}

# The 32 MiB blob is made here and used by the checks after this one.
head_downloads_nothing() {
  local digest mark
  head -c "${CROWD_BLOB_MIB}M" /dev/urandom >"$WORK/crowd.blob"
  digest=$(blob_push "$HUB_URL" "$IMAGE" "$WORK/crowd.blob")
  mark=$(upstream_mark hub)
  expect_equal "Content-Length" "$(header content-length --head "$MIRROR_URL/v2/$IMAGE/blobs/$digest")" \
    "$((CROWD_BLOB_MIB << 20))"
  expect_no_blob_get "$mark"
}

crowd_url() { echo "$MIRROR_URL/v2/$IMAGE/blobs/$(digest_of "$WORK/crowd.blob")"; }

# The upstream is frozen while the crowd gathers: all of them are waiting on the same fetch when it begins.
crowd_on_one_blob() {
  local url mark client clients=()
  url=$(crowd_url)
  mark=$(upstream_mark hub)
  mkdir "$WORK/crowd"
  kill -s STOP "$(pid_of hub)"
  for client in $(seq "$CROWD"); do
    { http --fail "$url" | sha256sum >"$WORK/crowd/$client"; } &
    clients+=($!)
  done
  sleep 1
  kill -s CONT "$(pid_of hub)"
  for client in "${clients[@]}"; do wait "$client"; done
  expect_equal "clients with the right bytes" \
    "$(cat "$WORK"/crowd/* | grep -c "^${url##*sha256:} ")" "$CROWD"
  expect_equal "blob GETs upstream" "$(upstream_requests hub GET "/blobs/sha256:${url##*sha256:}" "$mark")" 1
}

slice() { tail -c "+$(($1 + 1))" "$WORK/crowd.blob" | head -c "$2" | digest_of; }

ranges_are_right() {
  local url size; url=$(crowd_url); size=$((CROWD_BLOB_MIB << 20))
  expect_equal "a middle" "$(http --range 1000000-1999999 "$url" | digest_of)" "$(slice 1000000 1000000)"
  expect_equal "a tail" "$(http --range -500 "$url" | digest_of)" "$(slice $((size - 500)) 500)"
  expect_equal "to the end" "$(http --range "$((size - 7))-" "$url" | digest_of)" "$(slice $((size - 7)) 7)"
  expect_equal "Content-Range" "$(header content-range --range 5-9 "$url")" "bytes 5-9/$size"
  expect_equal "past the end" "$(status_of --range "$size-" "$url")" 416
  expect_equal "past the end, Content-Range" "$(header content-range --range "$size-" "$url")" "bytes */$size"
  # Several ranges: parts of a multipart body, or the whole blob. One part alone would be a corrupt layer (podman).
  local type; type=$(header content-type --range 0-9,100-109 "$url")
  [ "$(status_of --range 0-9,100-109 "$url")" = 200 ] || expect_match "several ranges" "$type" '^multipart/byteranges; *boundary='
}

unknown_namespace() {
  local mark url="$MIRROR_URL/v2/$IMAGE/manifests/$TAG?ns=unknown.example.test"
  mark=$(upstream_mark hub)
  expect_equal status "$(status_of "$url")" 404
  expect_equal code "$(http "$url" | jq -r '.errors[0].code')" NAME_UNKNOWN
  expect_equal "requests upstream" "$(upstream_requests hub '[A-Z]+' '' "$mark")" 0
}

held_content_is_served() {
  tags_expire
  local manifest; manifest=$(http --fail --header "Accept: $MANIFEST_TYPES" "$MIRROR_URL/v2/$IMAGE/manifests/$TAG" | digest_of)
  expect_equal "the tag's manifest" "$manifest" "$(manifest_header docker-content-digest)"
  expect_match "Cache-Status" "$(manifest_header cache-status)" 'hit|fwd=stale'
  expect_equal "the blob" "sha256:$(crowd_url | sed 's/.*sha256://')" "$(http --fail "$(crowd_url)" | digest_of)"
}

unheld_content_is_503() {
  local url="$MIRROR_URL/v2/$IMAGE/manifests/never-pulled"
  expect_equal status "$(status_of "$url")" 503
  expect_match Retry-After "$(header retry-after "$url")" '^[0-9]+$'
  expect_match code "$(http "$url" | jq -r '.errors[0].code')" '^[A-Z_]+$'
}

mirror_stops_cleanly() {
  stop mirror
  expect_equal "exit code" "$(exit_code_of mirror)" 0
}
