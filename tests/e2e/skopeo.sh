# skopeo addresses the mirror itself and names the registry as the first part of the path.

skopeo_main() {
  upstreams_start
  mirror_fresh
  check "skopeo: copies by path prefix from $HUB" skopeo_copies "$HUB" "$HUB_GREETING"
  check "skopeo: copies the same name from $OTHER, and gets the other image" skopeo_copies "$OTHER" "$OTHER_GREETING"
  check "skopeo: copies a Docker schema 2 image with its digest unchanged" skopeo_keeps_digest
  check "skopeo: a second copy makes no blob GET upstream" skopeo_second_copy
  check "skopeo: lists the upstream's tags" skopeo_lists_tags
  upstreams_stop
  check "skopeo: copies with the upstream stopped" skopeo_copies "$HUB" "$HUB_GREETING"
  mirror_restart
  check "skopeo: copies after a restart, upstream stopped ($HUB)" skopeo_copies "$HUB" "$HUB_GREETING"
  check "skopeo: copies after a restart, upstream stopped ($OTHER)" skopeo_copies "$OTHER" "$OTHER_GREETING"
}

skop() { timeout 60 skopeo --policy "$WORK/policy.json" --tmpdir "$WORK" "$@"; }

# skopeo_copies UPSTREAM GREETING: a copy into an empty directory, every layer downloaded anew; the last layer
# holds the greeting.
skopeo_copies() {
  local to layer; to=$(mktemp -d "$WORK/skopeo.XXXXXX")
  tags_expire
  skop copy --src-tls-verify=false "docker://$MIRROR_HOST/$1/$IMAGE:$TAG" "dir:$to"
  layer=$(jq -r '.layers[-1].digest | sub("sha256:"; "")' "$to/manifest.json")
  expect_equal greeting "$(tar --extract --gzip --to-stdout --file "$to/$layer" greeting)" "$2"
}

skopeo_keeps_digest() {
  local through direct
  through=$(skop inspect --tls-verify=false --format '{{.Digest}}' "docker://$MIRROR_HOST/$IMAGE:schema2")
  direct=$(skop inspect --tls-verify=false --format '{{.Digest}}' "docker://127.0.0.1:$HUB_PORT/$IMAGE:schema2")
  expect_equal digest "$through" "$direct"
  skop copy --src-tls-verify=false "docker://$MIRROR_HOST/$IMAGE@$direct" "dir:$(mktemp -d "$WORK/skopeo.XXXXXX")"
}

skopeo_second_copy() {
  local mark; mark=$(upstream_mark hub)
  skopeo_copies "$HUB" "$HUB_GREETING"
  expect_no_blob_get "$mark"
  expect_blobs_held
}

skopeo_lists_tags() {
  expect_match tags "$(skop list-tags --tls-verify=false "docker://$MIRROR_HOST/$HUB/$IMAGE" | jq -c .Tags)" '"schema2"'
}
