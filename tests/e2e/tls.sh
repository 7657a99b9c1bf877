# Through TLS with a CA of our own, as users who log in: dockerd, containerd, podman, skopeo, crane and curl. A wrong
# password is told as such, a right that is missing as denied. Then the same before registries whose own logins are
# passed through.
#
# dockerd trusts whatever it finds on loopback without a look at its certificate. So the mirror has a name that
# nothing on this machine resolves, and clients get there by a proxy that knows it: now each of them has to be told
# of the CA, and the first checks see to it that it makes a difference.

. "$E2E/upstreams.sh"         # again_start, htpasswd_line, token_program and what they need

NAME=mirror.test
TLS_PORT=$(free_port)
OPEN_PORT=$(free_port)
TUNNEL_PORT=$(free_port)
SECURE_PORT=$(free_port)
AT=$NAME:$TLS_PORT
URL=https://$AT
CA=$WORK/tls/ca.crt
CI_PASSWORD=ci-password-7
EVE_PASSWORD=eve-password-8

tls_main() {
  mkdir -p "$WORK/tls"
  certificates_make
  tunnel_start
  upstreams_start
  skop_up copy --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false \
    "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://127.0.0.1:$HUB_PORT/$PRIVATE:$TAG" >/dev/null
  skop_up copy --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false \
    "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://127.0.0.1:$HUB_PORT/open/pierbox:$TAG" >/dev/null
  own_users
  passed_basic
  passed_token
}

# ---- certificates, names, mirrors ------------------------------------------------------------------------

# A CA, a certificate for the mirror by its name, and one for a registry at 127.0.0.1.
certificates_make() (
  cd "$WORK/tls" || exit
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=e2e authority" -keyout ca.key -out ca.crt
  certificate_make mirror "DNS:$NAME"
  certificate_make secure IP:127.0.0.1
) 2>/dev/null

certificate_make() {
  openssl req -newkey rsa:2048 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out "$1.crt" \
    -extfile <(echo "subjectAltName=$2")
}

# A proxy that leads to the mirror's name, whatever the port, and nowhere else.
tunnel_start() {
  tunnel_program >"$WORK/tls/tunnel.py"
  start tunnel python3 -u "$WORK/tls/tunnel.py" "$TUNNEL_PORT" "$NAME"
  wait_for "the tunnel" 10 test -s "$LOGS/tunnel.log"
  export HTTPS_PROXY=http://127.0.0.1:$TUNNEL_PORT https_proxy=http://127.0.0.1:$TUNNEL_PORT
}

tunnel_program() {
  cat <<'PYTHON'
import socket, socketserver, sys, threading

def pour(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    finally:
        try:
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        method, target, _ = self.rfile.readline().decode().split(" ", 2)
        while self.rfile.readline().strip():
            pass
        name, _, port = target.partition(":")
        if method != "CONNECT" or name != sys.argv[2]:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", int(port))) as far:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pour, args=(far, self.connection), daemon=True)
            back.start()
            pour(self.connection, far)
            back.join()

socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer.daemon_threads = True
with socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
    print("ready")
    server.serve_forever()
PYTHON
}

# tls_mirror: a mirror that holds nothing, behind TLS; standard input is what follows in its configuration.
tls_mirror() {
  stop mirror
  cat >"$MIRROR_CONFIG" <<YAML
listen:
  - {address: "127.0.0.1:$TLS_PORT", tls: {cert: $WORK/tls/mirror.crt, key: $WORK/tls/mirror.key}}
  - {address: "127.0.0.1:$OPEN_PORT", anonymous: true}
admin: 127.0.0.1:$ADMIN_PORT
cache: {path: $(mktemp -d "$WORK/cache.XXXXXX")}
default_upstream: $HUB
$(cat)
YAML
  start mirror "$PIERHEAD" serve --config "$MIRROR_CONFIG"
  wait_for "the mirror to answer" 15 http --fail "$ADMIN_URL/healthz"
}

tls_http() { http --cacert "$CA" "$@"; }
tls_status() { tls_http --output /dev/null --write-out '%{http_code}' "$@"; }

# refused PATTERN COMMAND…: the command must fail, and say something like the pattern.
refused() {
  local pattern=$1 said; shift
  if said=$("$@" 2>&1); then fail "this was let in: $*"; fi
  expect_match "what is said of '$1 $2'" "$said" "$pattern"
}

# ---- users of our own ------------------------------------------------------------------------------------

WRONG_SAID='unauthorized|incorrect username or password|invalid username/password|authentication required|401'
DENIED_SAID='denied|forbidden|403'

own_users() {
  { htpasswd_line ci "$CI_PASSWORD"; htpasswd_line eve "$EVE_PASSWORD"; } >"$WORK/tls/htpasswd"
  tls_mirror <<YAML
upstreams:
  $HUB: {endpoints: ["$HUB_URL"], tag_ttl: 1s}
clients:
  htpasswd: $WORK/tls/htpasswd
  rules:
    - {users: [ci], actions: [pull], repositories: ["$HUB/library/*"]}
    - {users: [eve], actions: [pull], repositories: ["$HUB/other/*"]}
    - {users: [anonymous], actions: [pull], repositories: ["$HUB/open/*"]}
YAML
  curl_checks
  check "tls: docker, by registry-mirrors and without a login, from the address that asks for none" docker_by_mirror
  docker_checks ci "$CI_PASSWORD" "$IMAGE"
  check "tls: docker, a user without the right is denied" docker_denied eve "$EVE_PASSWORD"
  containerd_checks ci "$CI_PASSWORD" "$IMAGE"
  check "tls: containerd, a user without the right is denied" refused "$DENIED_SAID" tls_ctr eve "$EVE_PASSWORD" "$AT/$IMAGE:$TAG"
  check "tls: containerd, pulls as a mirror of $HUB by ns" containerd_by_ns
  podman_checks ci "$CI_PASSWORD" "$IMAGE"
  check "tls: podman, a user without the right is denied" podman_denied
  skopeo_checks ci "$CI_PASSWORD" "$IMAGE"
  check "tls: skopeo, a user without the right is denied" refused "$DENIED_SAID" tls_skopeo eve "$EVE_PASSWORD" "$IMAGE"
  if command -v crane >/dev/null; then
    crane_checks ci "$CI_PASSWORD" "$IMAGE"
    check "tls: crane, a user without the right is denied" crane_denied
  else
    skip "tls: crane" "not on the path"
  fi
  check "tls: no password stands in the log" secrets_kept "$CI_PASSWORD" "$EVE_PASSWORD"
  stop dockerd
  stop containerd
  stop mirror
}

curl_checks() {
  check "tls: without its CA the mirror is not believed" refused 'certificate' http "$URL/v2/"
  check "tls: one challenge, by the name that was asked for" challenge_is_bearer
  check "tls: Basic is taken everywhere, by HTTP/1.1 and HTTP/2" basic_is_taken
}

challenge_is_bearer() {
  expect_equal status "$(tls_status "$URL/v2/")" 401
  expect_equal challenge "$(header www-authenticate --cacert "$CA" "$URL/v2/")" "Bearer realm=\"$URL/token\",service=\"pierhead\""
}

basic_is_taken() {
  local version
  for version in --http1.1 --http2; do
    expect_equal ping "$(tls_status $version --user "ci:$CI_PASSWORD" "$URL/v2/")" 200
    expect_equal manifest "$(tls_status $version --user "ci:$CI_PASSWORD" --header "Accept: $MANIFEST_TYPES" "$URL/v2/$IMAGE/manifests/$TAG")" 200
    expect_equal "a wrong password" "$(tls_status $version --user "ci:$WRONG" "$URL/v2/")" 401
    expect_equal "a missing right" "$(tls_status $version --user "eve:$EVE_PASSWORD" "$URL/v2/$IMAGE/manifests/$TAG")" 403
  done
}

secrets_kept() {
  local text
  for text in "$@"; do
    expect_equal "lines of the mirror's log with a secret" "$(grep -cF "$text" "$LOGS/mirror.log" || true)" 0
  done
  expect_equal "lines with a token" "$(grep -ciE 'bearer [a-z0-9]|basic [a-z0-9]' "$LOGS/mirror.log" || true)" 0
}

# ---- docker ----------------------------------------------------------------------------------------------

# dockerd reads CAs in one place only. A mount namespace of its own gives it that place without touching the machine's.
tls_dockerd_start() {
  mkdir -p "$WORK/tls/docker-etc/certs.d/$AT" /etc/docker
  cat >"$WORK/tls/daemon.json" <<JSON
{
  "bridge": "none", "iptables": false, "ip6tables": false,
  "data-root": "$WORK/docker-tls", "exec-root": "$RUN/docker-tls", "pidfile": "$RUN/dockerd-tls.pid",
  "hosts": ["unix://$RUN/docker-tls.sock"],
  "registry-mirrors": ["http://127.0.0.1:$OPEN_PORT"]
}
JSON
  start dockerd unshare --mount sh -c 'mount --bind "$1" /etc/docker && exec dockerd --config-file "$2"' \
    sh "$WORK/tls/docker-etc" "$WORK/tls/daemon.json"
  wait_for "dockerd to answer" 30 tls_dock info
}

tls_dock() { DOCKER_CONFIG=$WORK/tls/docker timeout 90 docker --host "unix://$RUN/docker-tls.sock" "$@"; }

docker_login() { tls_dock login --username "$1" --password-stdin "$AT" <<<"$2"; }

# docker_checks USER PASSWORD REPOSITORY, and so for each client.
docker_checks() {
  running dockerd || tls_dockerd_start
  rm -f "$WORK/tls/docker-etc/certs.d/$AT/ca.crt"
  check "tls: docker, without the CA there is no login" refused 'certificate|x509' docker_login "$1" "$2"
  cp "$CA" "$WORK/tls/docker-etc/certs.d/$AT/"
  check "tls: docker, a wrong password is told as such" refused "$WRONG_SAID" docker_login "$1" "$WRONG"
  check "tls: docker, a pull without a login is refused" docker_unknown "$3"
  check "tls: docker logs in, pulls and runs" docker_pulls_as "$@"
}

docker_unknown() {
  tls_dock logout "$AT"
  refused "$WRONG_SAID|no basic auth credentials|denied" tls_dock pull --quiet "$AT/$1:$TAG"
}

docker_pulls_as() {
  expect_match login "$(docker_login "$1" "$2" 2>&1)" 'login succeeded'
  tls_dock pull --quiet "$AT/$3:$TAG"
  expect_equal greeting "$(tls_dock run --rm --network none "$AT/$3:$TAG")" "$HUB_GREETING"
  tls_dock images --all --quiet | sort -u | xargs --no-run-if-empty docker --host "unix://$RUN/docker-tls.sock" rmi --force
  tls_dock logout "$AT"
}

docker_denied() {
  docker_login "$1" "$2"
  refused "$DENIED_SAID" tls_dock pull --quiet "$AT/$IMAGE:$TAG"
  tls_dock logout "$AT"
}

# Not logged in anywhere: what is open comes, what is not is refused and is not to be had elsewhere.
docker_by_mirror() {
  local greeting
  running dockerd || tls_dockerd_start
  tls_dock pull --quiet "open/pierbox:$TAG"
  greeting=$(tls_dock run --rm --network none "open/pierbox:$TAG")
  expect_equal greeting "$greeting" "$HUB_GREETING"
  expect_equal "what is not open" "$(status_of "http://127.0.0.1:$OPEN_PORT/v2/$IMAGE/manifests/$TAG")" 403
  refused . tls_dock pull --quiet "${IMAGE#library/}:$TAG"
  tls_dock images --all --quiet | sort -u | xargs --no-run-if-empty docker --host "unix://$RUN/docker-tls.sock" rmi --force
}

# ---- containerd ------------------------------------------------------------------------------------------

tls_containerd_start() {
  cat >"$WORK/tls/containerd.toml" <<TOML
version = 2
root = "$WORK/containerd-tls"
state = "$RUN/containerd-tls"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$RUN/containerd-tls.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$WORK/containerd-opt"
TOML
  mkdir -p "$WORK/tls/hosts/$AT" "$WORK/tls/hosts/$HUB" "$WORK/tls/none"
  printf 'server = "%s"\n[host."%s"]\n  capabilities = ["pull", "resolve"]\n  ca = "%s"\n' "$URL" "$URL" "$CA" |
    tee "$WORK/tls/hosts/$AT/hosts.toml" >"$WORK/tls/hosts/$HUB/hosts.toml"
  start containerd containerd --config "$WORK/tls/containerd.toml"
  wait_for "containerd to answer" 20 tls_ct version
}

tls_ct() { timeout 60 ctr --address "$RUN/containerd-tls.sock" --namespace e2e "$@"; }

# tls_ctr USER PASSWORD IMAGE
tls_ctr() { tls_ct image pull --hosts-dir "${HOSTS:-$WORK/tls/hosts}" --user "$1:$2" "$3"; }

containerd_checks() {
  running containerd || tls_containerd_start
  HOSTS=$WORK/tls/none check "tls: containerd, without the CA there is no pull" refused 'certificate|x509' tls_ctr "$1" "$2" "$AT/$3:$TAG"
  check "tls: containerd, a wrong password is told as such" refused "$WRONG_SAID" tls_ctr "$1" "$WRONG" "$AT/$3:$TAG"
  check "tls: containerd pulls and runs" containerd_pulls_as "$1" "$2" "$AT/$3:$TAG"
}

containerd_pulls_as() {
  tls_ctr "$1" "$2" "$3"
  expect_equal greeting "$(tls_ct run --rm "$3" "greeting-$RANDOM")" "$HUB_GREETING"
  tls_ct image rm --sync "$3"
}

containerd_by_ns() {
  containerd_pulls_as ci "$CI_PASSWORD" "$HUB/$IMAGE:$TAG"
  refused "$WRONG_SAID" tls_ctr ci "$WRONG" "$HUB/$IMAGE:$TAG"
}

# ---- podman ----------------------------------------------------------------------------------------------

tls_pod() {
  : >"$WORK/tls/registries.conf"
  CONTAINERS_REGISTRIES_CONF=$WORK/tls/registries.conf REGISTRY_AUTH_FILE=$WORK/tls/podman-auth.json timeout 60 \
    podman --root "$WORK/podman-tls" --runroot "$RUN/podman-tls" --tmpdir "$RUN/podman-tls-tmp" --storage-driver overlay \
    --cgroup-manager cgroupfs --runtime runc --events-backend none "$@"
}

podman_login() { tls_pod login --cert-dir "${CERTS:-$WORK/tls/certs}" --username "$1" --password-stdin "$AT" <<<"$2"; }

podman_checks() {
  mkdir -p "$WORK/tls/certs" "$WORK/tls/none"
  cp "$CA" "$WORK/tls/certs/"
  CERTS=$WORK/tls/none check "tls: podman, without the CA there is no login" refused 'certificate|x509' podman_login "$1" "$2"
  check "tls: podman, a wrong password is told as such" refused "$WRONG_SAID" podman_login "$1" "$WRONG"
  check "tls: podman logs in, pulls and runs" podman_pulls_as "$@"
}

podman_pull() { tls_pod pull --quiet --cert-dir "$WORK/tls/certs" --signature-policy "$WORK/policy.json" "$AT/$1:$TAG"; }

podman_pulls_as() {
  podman_login "$1" "$2"
  podman_pull "$3"
  expect_equal greeting "$(tls_pod run --rm --network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "$AT/$3:$TAG")" "$HUB_GREETING"
  tls_pod rmi --all --force
  tls_pod logout "$AT"
}

podman_denied() {
  podman_login eve "$EVE_PASSWORD"
  refused "$DENIED_SAID" podman_pull "$IMAGE"
  tls_pod logout "$AT"
}

# ---- skopeo ----------------------------------------------------------------------------------------------

# tls_skopeo USER PASSWORD REPOSITORY [CERTIFICATES]
tls_skopeo() {
  skop_up copy --src-cert-dir "${4:-$WORK/tls/certs}" --src-creds "$1:$2" "docker://$AT/$3:$TAG" "dir:$(mktemp -d "$WORK/skopeo.XXXXXX")"
}

skopeo_checks() {
  check "tls: skopeo, without the CA there is no copy" refused 'certificate|x509' tls_skopeo "$@" "$WORK/tls/none"
  check "tls: skopeo, a wrong password is told as such" refused "$WRONG_SAID" tls_skopeo "$1" "$WRONG" "$3"
  check "tls: skopeo copies" tls_skopeo "$@"
  check "tls: skopeo logs in and inspects" skopeo_by_login "$@"
}

skopeo_by_login() {
  export REGISTRY_AUTH_FILE=$WORK/tls/skopeo-auth.json
  refused "$WRONG_SAID" skop_up login --cert-dir "$WORK/tls/certs" --username "$1" --password "$WRONG" "$AT"
  skop_up login --cert-dir "$WORK/tls/certs" --username "$1" --password "$2" "$AT"
  skop_up inspect --cert-dir "$WORK/tls/certs" "docker://$AT/$3:$TAG"
}

# ---- crane -----------------------------------------------------------------------------------------------

tls_crane() { DOCKER_CONFIG=$WORK/tls/crane SSL_CERT_FILE=$CA timeout 60 crane "$@"; }

crane_login() { tls_crane auth login "$AT" --username "$1" --password "$2"; }

# `crane auth login` writes the password down without asking; the first use tells.
crane_checks() {
  check "tls: crane, without the CA there is no pull" crane_untrusting "$@"
  check "tls: crane, a wrong password is told as such" crane_wrong "$@"
  check "tls: crane logs in and validates every byte" crane_validates "$@"
}

crane_untrusting() {
  crane_login "$1" "$2"
  refused 'certificate|x509' env DOCKER_CONFIG="$WORK/tls/crane" timeout 60 crane digest "$AT/$3:$TAG"
}

crane_wrong() {
  crane_login "$1" "$WRONG"
  refused "$WRONG_SAID" tls_crane digest "$AT/$3:$TAG"
}

crane_validates() {
  crane_login "$1" "$2"
  tls_crane validate --remote "$AT/$3:$TAG"
}

crane_denied() {
  crane_login eve "$EVE_PASSWORD"
  refused "$DENIED_SAID" tls_crane digest "$AT/$IMAGE:$TAG"
}

# ---- logins that are passed through ----------------------------------------------------------------------

# Who logs in is a user of the registry behind, and the mirror knows none of them.
passed_checks() {
  docker_checks "$@"
  containerd_checks "$@"
  podman_checks "$@"
  skopeo_checks "$@"
  if command -v crane >/dev/null; then crane_checks "$@"; fi
  check "tls: what puller's pulls have left opens nothing to others" passed_is_private "$@"
  check "tls: no upstream password stands in the log" secrets_kept "$PASSWORD" "$WRONG"
  stop dockerd
  stop containerd
  stop mirror
}

passed_is_private() {
  local digest
  digest=$(tls_http --user "$1:$2" --header "Accept: $MANIFEST_TYPES" --dump-header - --output /dev/null "$URL/v2/$3/manifests/$TAG" |
    tr -d '\r' | awk 'tolower($1) == "docker-content-digest:" { print $2 }')
  expect_match digest "$digest" '^sha256:'
  expect_equal "nobody, by tag" "$(tls_status "$URL/v2/$3/manifests/$TAG")" 401
  expect_equal "nobody, by digest" "$(tls_status "$URL/v2/$3/manifests/$digest")" 401
  expect_match "a wrong password, by digest" "$(tls_status --user "$1:$WRONG" "$URL/v2/$3/manifests/$digest")" '^40[13]$'
}

# A registry that wants Basic, behind TLS of its own.
passed_basic() {
  banner "tls: passed through to htpasswd"
  htpasswd_line puller "$PASSWORD" >"$WORK/tls/upstream-htpasswd"
  registry_config secure "$SECURE_PORT"
  sed -i -e "s|rootdirectory: .*|rootdirectory: $WORK/hub}|" \
    -e "s|^http: .*|http: {addr: \"127.0.0.1:$SECURE_PORT\", tls: {certificate: $WORK/tls/secure.crt, key: $WORK/tls/secure.key}}|" "$WORK/secure.yml"
  echo "auth: {htpasswd: {realm: basic, path: $WORK/tls/upstream-htpasswd}}" >>"$WORK/secure.yml"
  start secure docker-registry serve "$WORK/secure.yml"
  wait_for "the registry to answer" 10 secure_answers
  tls_mirror <<YAML
upstreams:
  $HUB: {endpoints: ["https://127.0.0.1:$SECURE_PORT"], ca: $CA, auth: passthrough, tag_ttl: 1s}
YAML
  passed_checks puller "$PASSWORD" "$PRIVATE"
  stop secure
}

secure_answers() { expect_equal status "$(tls_status "https://127.0.0.1:$SECURE_PORT/v2/")" 401; }

# A registry with a token service, which anyone may read but what is private.
passed_token() {
  banner "tls: passed through to a token service"
  token_keys
  token_program >"$WORK/token.py"
  start token python3 -u "$WORK/token.py" "$TOKEN_PORT" "$WORK/token.key" "$WORK/token.pem" puller "$PASSWORD"
  wait_for "the token service to answer" 10 answers 200 "http://127.0.0.1:$TOKEN_PORT/token"
  locked_start
  tls_mirror <<YAML
upstreams:
  $HUB: {endpoints: ["http://127.0.0.1:$LOCKED_PORT"], auth: passthrough, tag_ttl: 1s}
YAML
  tls_dockerd_start
  cp "$CA" "$WORK/tls/docker-etc/certs.d/$AT/"
  check "tls: docker, what is public is pulled without a login" tls_dock pull --quiet "$AT/$IMAGE:$TAG"
  passed_checks puller "$PASSWORD" "$PRIVATE"
  stop locked
  stop token
}
