# A registry of one's own with users, over HTTP and over TLS with an authority of its own: each client pushes and
# pulls back the same digest, and is told when its password is wrong.

SECURE_TLS_PORT=$(free_port)
SECURE_HTTP_PORT=$(free_port)
SECURE_TLS=127.0.0.1:$SECURE_TLS_PORT
SECURE_HTTP=127.0.0.1:$SECURE_HTTP_PORT
CI=ci:ci-secret-1

secure_main() {
  local scheme host
  upstreams_start
  secure_start
  secure_dockerd
  bud pull --quiet --tls-verify=false --policy always --signature-policy "$WORK/policy.json" "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" >/dev/null
  for scheme in http tls; do
    if [ "$scheme" = tls ]; then host=$SECURE_TLS; else host=$SECURE_HTTP; fi
    check "secure: docker over $scheme with a login" secure_docker "$scheme" "$host"
    check "secure: buildah over $scheme with a login" secure_buildah "$scheme" "$host"
    check "secure: podman over $scheme with a login" secure_podman "$scheme" "$host"
    check "secure: skopeo over $scheme with a login" secure_skopeo "$scheme" "$host"
    if command -v crane >/dev/null; then
      check "secure: crane over $scheme with a login" secure_crane "$scheme" "$host"
    else
      skip "secure: crane over $scheme" "not on the path"
    fi
    if command -v helm >/dev/null; then
      check "secure: helm over $scheme with a login" secure_helm "$scheme" "$host"
    else
      skip "secure: helm over $scheme" "not on the path"
    fi
  done
  check "secure: a certificate of nobody's is not believed" secure_unknown
  stop dockerd
}

secure_start() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=e2e authority" \
    -keyout "$WORK/ca.key" -out "$WORK/ca.pem" 2>/dev/null
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=registry" \
    -keyout "$WORK/secure.key" -out "$WORK/secure.csr" 2>/dev/null
  openssl x509 -req -in "$WORK/secure.csr" -CA "$WORK/ca.pem" -CAkey "$WORK/ca.key" -CAcreateserial -days 2 \
    -extfile <(printf 'subjectAltName=IP:127.0.0.1,DNS:localhost') -out "$WORK/secure.pem" 2>/dev/null
  mkdir -p "$WORK/certs"
  cp "$WORK/ca.pem" "$WORK/certs/ca.crt"
  perl -e 'print "$ARGV[0]:", crypt($ARGV[1], q($2y$05$abcdefghijklmnopqrstuu)), "\n"' ci ci-secret-1 >"$WORK/secure-htpasswd"
  cat >"$WORK/secure.yaml" <<YAML
listen:
  - $SECURE_HTTP
  - {address: "$SECURE_TLS", tls: {cert: $WORK/secure.pem, key: $WORK/secure.key}}
admin: 127.0.0.1:$(free_port)
cache: {path: $WORK/secure, min_free: 0%}
default_upstream: $HUB
upstreams: {$HUB: {endpoints: [$HUB_URL]}}
hosted: {repositories: ["team/**"]}
clients:
  htpasswd: $WORK/secure-htpasswd
  rules: [{users: [ci], actions: [pull, push], repositories: ["team/**"]}]
YAML
  start secure "$PIERHEAD" serve --config "$WORK/secure.yaml"
  wait_for "the registry to answer" 15 http "http://$SECURE_HTTP/v2/"
}

secure_dockerd() {
  cat >"$WORK/secure-daemon.json" <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false,
  "data-root": "$WORK/docker-secure", "exec-root": "$RUN/docker-secure", "pidfile": "$RUN/dockerd-secure.pid",
  "hosts": ["unix://$RUN/docker-secure.sock"]
}
JSON
  start dockerd dockerd --config-file "$WORK/secure-daemon.json"
  wait_for "dockerd to answer" 30 dock_secure info
  dock_secure pull --quiet "127.0.0.1:$HUB_PORT/$IMAGE:schema2" >/dev/null
}

dock_secure() { DOCKER_CONFIG=$WORK/secure-docker timeout 90 docker --host "unix://$RUN/docker-secure.sock" "$@"; }
skop_secure() { timeout 60 skopeo --policy "$WORK/policy.json" --tmpdir "$WORK" "$@"; }
pod_secure() {
  : >"$WORK/secure-registries.conf"
  CONTAINERS_REGISTRIES_CONF=$WORK/secure-registries.conf timeout 60 \
    podman --root "$WORK/podman" --runroot "$RUN/podman" --tmpdir "$RUN/podman-tmp" --storage-driver overlay \
    --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
}

# trust SCHEME [PREFIX]: what the containers/image tools need to believe the authority, or to go without.
trust() { if [ "$1" = tls ]; then echo "--${2:-}cert-dir=$WORK/certs"; else echo "--${2:-}tls-verify=false"; fi; }

secure_digest() { header docker-content-digest --head --user "$CI" --header "Accept: $MANIFEST_TYPES" "http://$SECURE_HTTP/v2/$1/manifests/$2"; }

# told WHAT COMMAND…: the command fails, and says that the password is wrong.
told_wrong() {
  local what=$1; shift
  ! "$@" >"$WORK/wrong" 2>&1 || fail "$what let a wrong password in"
  cat "$WORK/wrong"
  expect_match "$what" "$(cat "$WORK/wrong")" 'unauthorized|invalid username/password|401'
}

# dockerd asks any loopback address by HTTPS first, and does not check its certificate.
secure_docker() {
  local digest
  # By TLS it tries plain HTTP afterwards, as it does with loopback addresses, and tells that in the end: its
  # own log says why the first way failed.
  if [ "$1" = tls ]; then
    ! dock_secure login --username ci --password wrong "$2" || fail "docker let a wrong password in"
    expect_match docker "$(grep "https://$2" "$LOGS/dockerd.log" | tail -1)" unauthorized
  else
    told_wrong docker dock_secure login --username ci --password wrong "$2"
  fi
  dock_secure login --username ci --password ci-secret-1 "$2"
  dock_secure tag "127.0.0.1:$HUB_PORT/$IMAGE:schema2" "$2/team/docker-$1:1"
  dock_secure push "$2/team/docker-$1:1" | tee "$WORK/secure-push"
  digest=$(grep -o 'sha256:[0-9a-f]*' "$WORK/secure-push" | tail -1)
  expect_equal digest "$(secure_digest "team/docker-$1" 1)" "$digest"
  dock_secure rmi "$2/team/docker-$1:1"
  dock_secure pull --quiet "$2/team/docker-$1@$digest"
  expect_equal greeting "$(dock_secure run --rm --network none "$2/team/docker-$1@$digest")" "$HUB_GREETING"
}

secure_buildah() {
  local by; by=$(trust "$1")
  told_wrong buildah bud push --quiet "$by" --creds ci:wrong --signature-policy "$WORK/policy.json" "127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$2/team/buildah-$1:1"
  bud push --quiet "$by" --creds "$CI" --signature-policy "$WORK/policy.json" --digestfile "$WORK/pushed" \
    "127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$2/team/buildah-$1:1"
  expect_equal digest "$(secure_digest "team/buildah-$1" 1)" "$(cat "$WORK/pushed")"
  bud pull --quiet "$by" --creds "$CI" --policy always --signature-policy "$WORK/policy.json" "docker://$2/team/buildah-$1@$(cat "$WORK/pushed")"
}

secure_podman() {
  local by; by=$(trust "$1")
  told_wrong podman pod_secure pull --quiet "$by" --creds ci:wrong --signature-policy "$WORK/policy.json" "$2/team/buildah-$1:1"
  pod_secure pull --quiet "$by" --creds "$CI" --signature-policy "$WORK/policy.json" "$2/team/buildah-$1:1"
  pod_secure push --quiet "$by" --creds "$CI" --signature-policy "$WORK/policy.json" --digestfile "$WORK/pushed" \
    "$2/team/buildah-$1:1" "docker://$2/team/podman-$1:1"
  expect_equal digest "$(secure_digest "team/podman-$1" 1)" "$(cat "$WORK/pushed")"
  pod_secure rmi --all --force
}

secure_skopeo() {
  local digest
  told_wrong skopeo skop_secure inspect "$(trust "$1")" --creds ci:wrong "docker://$2/team/buildah-$1:1"
  skop_secure copy --all --preserve-digests --src-tls-verify=false "$(trust "$1" dest-)" --dest-creds "$CI" \
    "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://$2/team/skopeo-$1:1"
  digest=$(header docker-content-digest --head --header "Accept: $MANIFEST_TYPES" "$HUB_URL/v2/$IMAGE/manifests/$TAG")
  expect_equal digest "$(secure_digest "team/skopeo-$1" 1)" "$digest"
  skop_secure copy --all --preserve-digests "$(trust "$1" src-)" --src-creds "$CI" "docker://$2/team/skopeo-$1:1" "dir:$(mktemp -d "$WORK/secure.XXXXXX")"
}

secure_crane() {
  local plain=()
  [ "$1" = tls ] || plain=(--insecure)
  export DOCKER_CONFIG=$WORK/secure-crane-$1 SSL_CERT_FILE=$WORK/ca.pem
  crane auth login "$2" --username ci --password wrong
  told_wrong crane crane ls "${plain[@]}" "$2/team/skopeo-$1"
  crane auth login "$2" --username ci --password ci-secret-1
  crane copy "${plain[@]}" "$2/team/skopeo-$1:1" "$2/team/crane-$1:1"
  expect_equal digest "$(crane digest "${plain[@]}" "$2/team/crane-$1:1")" "$(secure_digest "team/skopeo-$1" 1)"
  crane pull "${plain[@]}" "$2/team/crane-$1:1" "$WORK/secure-crane.tar"
  crane push "${plain[@]}" "$WORK/secure-crane.tar" "$2/team/crane-$1:2"
  crane validate "${plain[@]}" --remote "$2/team/crane-$1:2"
}

secure_helm() {
  local how=(--plain-http)
  [ "$1" = http ] || how=(--ca-file "$WORK/ca.pem")
  mkdir -p "$WORK/secure-helm-$1"
  cd "$WORK/secure-helm-$1" || return
  export HELM_CACHE_HOME=$PWD/cache HELM_CONFIG_HOME=$PWD/config HELM_DATA_HOME=$PWD/data
  told_wrong helm helm registry login "$2" "${how[@]}" --username ci --password wrong
  helm registry login "$2" "${how[@]}" --username ci --password ci-secret-1
  helm create chart >/dev/null
  helm package chart --version 1.2.3
  mkdir pulled
  helm push "${how[@]}" chart-1.2.3.tgz "oci://$2/team/helm-$1"
  helm pull "${how[@]}" "oci://$2/team/helm-$1/chart" --version 1.2.3 --destination pulled
  cmp chart-1.2.3.tgz pulled/chart-1.2.3.tgz
}

secure_unknown() {
  ! skop_secure inspect --creds "$CI" "docker://$SECURE_TLS/team/skopeo-tls:1" >"$WORK/wrong" 2>&1 || fail "a certificate of an unknown authority was believed"
  expect_match certificate "$(cat "$WORK/wrong")" 'x509'
}
