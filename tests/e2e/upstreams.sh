# Upstreams that ask for a login or break off: docker-registry with htpasswd and with tokens, a mirror before a
# mirror, an nginx that truncates, and an endpoint that dies in the middle of a body.
#
# Each of these registries serves the hub's folder again, so nothing is pushed twice. Each section has a mirror
# that holds nothing.

FAR_PORT=$(free_port)        # the mirror next to the origin, in the chain
NEAR_PORT=$(free_port)       # the mirror next to the clients
ORIGIN_PORT=$(free_port)     # where the chain begins
BASIC_PORT=$(free_port)
LOCKED_PORT=$(free_port)
TOKEN_PORT=$(free_port)
PLAIN_PORT=$(free_port)      # a registry, the proxy that cuts, and the nginx before both
CUTTER_PORT=$(free_port)
NGINX_PORT=$(free_port)
FIRST_PORT=$(free_port)      # two endpoints of one upstream
SECOND_PORT=$(free_port)

BIG_MIB=32
CUT_BYTES=5000000
PRIVATE=private/pierbox
PASSWORD=correct-horse
WRONG=wrong-passwords
PASSWORD_FILE=$WORK/upstream-password

upstreams_main() {
  upstreams_start
  upstreams_stock
  basic_checks
  token_checks
  chain_checks
  truncation_checks
  death_checks
}

# ---- what they share -------------------------------------------------------------------------------------

# A private copy of the hub's image, and a blob that takes a while.
upstreams_stock() {
  skop_up copy --all --preserve-digests --src-tls-verify=false --dest-tls-verify=false \
    "docker://127.0.0.1:$HUB_PORT/$IMAGE:$TAG" "docker://127.0.0.1:$HUB_PORT/$PRIVATE:$TAG" >/dev/null
  head -c "${BIG_MIB}M" /dev/urandom >"$WORK/big.blob"
  BIG=$(blob_push "$HUB_URL" "$IMAGE" "$WORK/big.blob")
}

skop_up() { timeout 90 skopeo --policy "$WORK/policy.json" --tmpdir "$WORK" "$@"; }

# again_start NAME PORT STATUS: a registry with the hub's content; standard input is more of its configuration.
# It is up when it answers /v2/ with that status.
again_start() {
  registry_config "$1" "$2"
  sed -i "s|rootdirectory: .*|rootdirectory: $WORK/hub}|" "$WORK/$1.yml"
  cat >>"$WORK/$1.yml"
  start "$1" docker-registry serve "$WORK/$1.yml"
  wait_for "$1 to answer" 10 answers "$3" "http://127.0.0.1:$2/v2/"
}

answers() { [ "$(status_of "$2")" = "$1" ]; }

# mirror_for: a mirror that holds nothing before one upstream, the default; standard input is the upstream's section.
mirror_for() {
  stop mirror
  cat >"$MIRROR_CONFIG" <<YAML
listen: $MIRROR_HOST
admin: 127.0.0.1:$ADMIN_PORT
cache: {path: $(mktemp -d "$WORK/cache.XXXXXX")}
default_upstream: $HUB
upstreams:
  $HUB:
    tag_ttl: 1s
$(sed 's/^/    /')
YAML
  mirror_start
}

# pulls HOST NAME:TAG: skopeo gets every layer anew; the last one holds the hub's greeting.
pulls() {
  local to layer; to=$(mktemp -d "$WORK/skopeo.XXXXXX")
  tags_expire
  skop_up copy --src-tls-verify=false "docker://$1/$2" "dir:$to"
  layer=$(jq -r '.layers[-1].digest | sub("sha256:"; "")' "$to/manifest.json")
  expect_equal greeting "$(tar --extract --gzip --to-stdout --file "$to/$layer" greeting)" "$HUB_GREETING"
  rm -rf "$to"
}

manifest_of() { http --header "Accept: $MANIFEST_TYPES" "$@"; }

# denied REPOSITORY: the mirror answers 403 DENIED and names the upstream, and skopeo shows as much.
denied() {
  local url="$MIRROR_URL/v2/$1/manifests/$TAG" said
  expect_equal status "$(status_of "$url")" 403
  said=$(http "$url")
  expect_equal code "$(jq -r '.errors[0].code' <<<"$said")" DENIED
  expect_match message "$(jq -r '.errors[0].message' <<<"$said")" "${HUB//./\\.}.*auth"
  if said=$(skop_up inspect --tls-verify=false "docker://$MIRROR_HOST/$1:$TAG" 2>&1); then fail "skopeo got it"; fi
  expect_match "what skopeo says" "$said" "denied.*${HUB//./\\.}"
}

# ---- htpasswd --------------------------------------------------------------------------------------------

basic_checks() {
  htpasswd_line puller "$PASSWORD" >"$WORK/htpasswd"
  again_start basic "$BASIC_PORT" 401 <<<"auth: {htpasswd: {realm: basic, path: $WORK/htpasswd}}"
  printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE"
  basic_mirror
  check "upstreams: htpasswd, a client without a login is refused" \
    answers 401 "http://127.0.0.1:$BASIC_PORT/v2/$PRIVATE/tags/list"
  check "upstreams: htpasswd, a pull with the password file" pulls "$MIRROR_HOST" "$PRIVATE:$TAG"
  printf '%s\n' "$WRONG" >"$PASSWORD_FILE"
  basic_mirror
  check "upstreams: htpasswd, a wrong password is DENIED and names the upstream" denied "$PRIVATE"
  check "upstreams: htpasswd, the corrected file counts from the next pull on" basic_corrected
  check "upstreams: htpasswd, without the file the answer names it, and what is held is served" basic_file_gone
  check "upstreams: htpasswd, no password stands in the log" nothing_told
  stop mirror
  stop basic
}

basic_mirror() {
  mirror_for <<YAML
endpoints: ["http://127.0.0.1:$BASIC_PORT"]
auth: {username: puller, password_file: $PASSWORD_FILE}
YAML
}

# htpasswd_line USER PASSWORD: bcrypt, the only form that docker-registry takes; by perl, which every Debian has.
htpasswd_line() { perl -e 'print "$ARGV[0]:", crypt($ARGV[1], q($2y$05$abcdefghijklmnopqrstuu)), "\n"' "$1" "$2"; }

basic_corrected() {
  local pid; pid=$(pid_of mirror)
  printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE"
  pulls "$MIRROR_HOST" "$PRIVATE:$TAG"
  expect_equal "the mirror's pid" "$(pid_of mirror)" "$pid"
  running mirror
}

# A pull that needs the upstream's leave again is answered from what is held; what is not held is 503.
basic_file_gone() {
  local url="$MIRROR_URL/v2/$PRIVATE/manifests/never-pulled"
  rm -f "$PASSWORD_FILE"
  pulls "$MIRROR_HOST" "$PRIVATE:$TAG"
  expect_equal status "$(status_of "$url")" 503
  expect_match message "$(http "$url" | jq -r '.errors[0].message')" "${PASSWORD_FILE##*/}"
  printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE"
  expect_equal "once it is back" "$(status_of "$url")" 404
}

nothing_told() {
  local text
  for text in "$PASSWORD" "$WRONG" "$(printf 'puller:%s' "$PASSWORD" | base64)"; do
    expect_equal "lines of the mirror's log with a secret" "$(grep -cF "$text" "$LOGS/mirror.log" || true)" 0
  done
}

# ---- tokens ----------------------------------------------------------------------------------------------

token_checks() {
  token_keys
  token_program >"$WORK/token.py"
  start token python3 -u "$WORK/token.py" "$TOKEN_PORT" "$WORK/token.key" "$WORK/token.pem" puller "$PASSWORD"
  wait_for "the token service to answer" 10 answers 200 "http://127.0.0.1:$TOKEN_PORT/token"
  locked_start
  token_mirror anonymous
  check "upstreams: tokens, anonymous, several pulls with one token" token_fetched_once "$IMAGE" ""
  check "upstreams: tokens, anonymous, what is private is DENIED" denied "$PRIVATE"
  printf '%s\n' "$WRONG" >"$PASSWORD_FILE"
  token_mirror "{username: puller, password_file: $PASSWORD_FILE}"
  check "upstreams: tokens, a wrong password is DENIED and names the upstream" denied "$PRIVATE"
  printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE"
  check "upstreams: tokens, as a user, several pulls with one token" token_fetched_once "$PRIVATE" puller
  check "upstreams: tokens, one that is refused in the middle of its life is renewed once" token_renewed
  check "upstreams: tokens, no password stands in the log" nothing_told
  stop mirror
  stop locked
  stop token
}

locked_start() {
  again_start locked "$LOCKED_PORT" 401 <<YAML
auth:
  token: {realm: "http://127.0.0.1:$TOKEN_PORT/token", service: locked, issuer: e2e, rootcertbundle: $WORK/token.pem}
YAML
}

token_mirror() {
  mirror_for <<YAML
endpoints: ["http://127.0.0.1:$LOCKED_PORT"]
auth: $1
YAML
}

token_keys() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=e2e \
    -keyout "$WORK/token.key" -out "$WORK/token.pem" 2>/dev/null
}

# The token service: anyone may pull what is not under private/, the user everything. It logs whom it served,
# for what, and the status. Its tokens are RS256, with the certificate in the header, and live for an hour.
token_program() {
  cat <<'PYTHON'
import base64, http.server, json, ssl, subprocess, sys, time, urllib.parse

PORT, KEY, CERT, USER, PASSWORD = sys.argv[1:]
LOGIN = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
LIFE = 3600

def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")

def token(user, service, scopes):
    granted = []
    for scope in scopes:
        kind, name, actions = scope.split(":")
        if user or not name.startswith("private/"):
            granted.append({"type": kind, "name": name, "actions": ["pull"] if "pull" in actions else []})
    now = int(time.time())
    cert = base64.b64encode(ssl.PEM_cert_to_DER_cert(open(CERT).read())).decode()
    head = {"typ": "JWT", "alg": "RS256", "x5c": [cert]}
    claims = {"iss": "e2e", "sub": user, "aud": service, "iat": now, "nbf": now - 5, "exp": now + LIFE,
              "jti": str(time.time_ns()), "access": granted}
    text = b64(json.dumps(head).encode()) + b"." + b64(json.dumps(claims).encode())
    sign = subprocess.run(["openssl", "dgst", "-sha256", "-sign", KEY], input=text, stdout=subprocess.PIPE, check=True)
    return {"token": (text + b"." + b64(sign.stdout)).decode(), "expires_in": LIFE}

class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        login, scopes = self.headers.get("Authorization"), query.get("scope", [])
        user = USER if login == LOGIN else ""
        status = 401 if login and not user else 200
        body = {"errors": [{"code": "UNAUTHORIZED"}]}
        if status == 200:
            body = token(user, query.get("service", [""])[0], scopes)
        print(f"token for '{user}' {' '.join(scopes) or '-'} {status}")
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

http.server.ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler).serve_forever()
PYTHON
}

# tokens_since LINE PATTERN: how many tokens were asked for since that line.
tokens_since() { sleep 0.3; tail -n "+$(($1 + 1))" "$LOGS/token.log" | grep -cE "$2" || true; }

# token_fetched_once REPOSITORY USER: a pull, a second one whose tag has to be asked again, and another tag.
token_fetched_once() {
  local mark upstream; mark=$(upstream_mark token); upstream=$(upstream_mark locked)
  pulls "$MIRROR_HOST" "$1:$TAG"
  pulls "$MIRROR_HOST" "$1:$TAG"
  expect_equal "another tag" "$(status_of "$MIRROR_URL/v2/$1/manifests/other")" 404
  [ "$(upstream_requests locked '[A-Z]+' "$1/manifests/" "$upstream")" -ge 3 ] || fail "the registry was not asked"
  expect_equal "tokens" "$(tokens_since "$mark" "^token for '$2' repository:$1:pull 200")" 1
  expect_equal "all questions for tokens" "$(tokens_since "$mark" .)" 1
}

# The service has new keys, and the registry believes no others: the token that the mirror holds is void.
token_renewed() {
  local mark upstream; mark=$(upstream_mark token)
  stop locked
  token_keys
  locked_start
  upstream=$(upstream_mark locked)
  pulls "$MIRROR_HOST" "$PRIVATE:$TAG"
  expect_equal "refusals" "$(upstream_requests locked '[A-Z]+' "$PRIVATE/.*\" 401 " "$upstream")" 1
  expect_equal "tokens" "$(tokens_since "$mark" "^token for 'puller' repository:$PRIVATE:pull 200")" 1
}

# ---- a mirror before a mirror ----------------------------------------------------------------------------

chain_checks() {
  again_start origin "$ORIGIN_PORT" 200 </dev/null
  chain_start far "$FAR_PORT" "$ORIGIN_PORT"
  chain_start near "$NEAR_PORT" "$FAR_PORT"
  check "upstreams: chain, cold: each blob leaves the origin once" chain_cold
  check "upstreams: chain, warm: no blob leaves the origin" chain_warm
  stop origin
  check "upstreams: chain, origin stopped" pulls "127.0.0.1:$NEAR_PORT" "$IMAGE:$TAG"
  chain_start near "$NEAR_PORT" "$FAR_PORT"
  check "upstreams: chain, origin stopped, the near mirror lost all" pulls "127.0.0.1:$NEAR_PORT" "$IMAGE:$TAG"
  check "upstreams: chain, origin stopped, what nobody holds is 503" chain_unheld
  stop far
  check "upstreams: chain, origin and the first mirror stopped" pulls "127.0.0.1:$NEAR_PORT" "$IMAGE:$TAG"
  stop near
}

# chain_start NAME PORT UPSTREAM_PORT: a mirror that holds nothing.
chain_start() {
  stop "$1"
  cat >"$WORK/$1.yaml" <<YAML
listen: 127.0.0.1:$2
admin: 127.0.0.1:$(free_port)
cache: {path: $(mktemp -d "$WORK/cache.XXXXXX")}
default_upstream: $HUB
upstreams: {$HUB: {endpoints: ["http://127.0.0.1:$3"], tag_ttl: 1s}}
YAML
  start "$1" "$PIERHEAD" serve --config "$WORK/$1.yaml"
  wait_for "$1 to answer" 15 http --fail "http://127.0.0.1:$2/v2/"
}

# The image has a configuration and at least two layers. That no blob comes twice counts more than how many.
chain_cold() {
  local mark blobs; mark=$(upstream_mark origin)
  pulls "127.0.0.1:$NEAR_PORT" "$IMAGE:$TAG"
  sleep 0.3
  blobs=$(tail -n "+$((mark + 1))" "$LOGS/origin.log" | grep -oE '"GET /v2/[^ ]*/blobs/[^ ]*' | sort)
  [ "$(wc -l <<<"$blobs")" -ge 2 ] || fail "the origin sent: $blobs"
  expect_equal "blobs that left twice" "$(uniq -d <<<"$blobs")" ""
  expect_equal digest "$(manifest_of "http://127.0.0.1:$NEAR_PORT/v2/$IMAGE/manifests/$TAG" | digest_of)" \
    "$(manifest_of "http://127.0.0.1:$ORIGIN_PORT/v2/$IMAGE/manifests/$TAG" | digest_of)"
}

chain_warm() {
  local mark; mark=$(upstream_mark origin)
  pulls "127.0.0.1:$NEAR_PORT" "$IMAGE:$TAG"
  expect_equal "blob GETs at the origin" "$(upstream_requests origin GET /blobs/ "$mark")" 0
}

chain_unheld() {
  local url="http://127.0.0.1:$NEAR_PORT/v2/$IMAGE/manifests/never-pulled"
  expect_equal status "$(status_of "$url")" 503
  expect_match message "$(http "$url" | jq -r '.errors[0].message')" "${HUB//./\\.}"
}

# ---- an nginx that truncates -----------------------------------------------------------------------------

truncation_checks() {
  again_start plain "$PLAIN_PORT" 200 </dev/null
  cutter_program >"$WORK/cutter.py"
  start cutter python3 -u "$WORK/cutter.py" "$CUTTER_PORT" "$PLAIN_PORT" "$CUT_BYTES"
  nginx_config >"$WORK/nginx.conf"
  mkdir -p "$WORK/nginx"
  start nginx nginx -e stderr -p "$WORK/nginx" -c "$WORK/nginx.conf"
  wait_for "nginx to answer" 10 answers 200 "http://127.0.0.1:$NGINX_PORT/v2/"
  mirror_for <<<"endpoints: [\"http://127.0.0.1:$NGINX_PORT\"]"
  check "upstreams: nginx truncates, a client of its own notices" truncation_is_real
  check "upstreams: nginx truncates, the mirror's client gets the blob in one go" truncation_hidden
  check "upstreams: nginx truncates, skopeo pulls an image" pulls "$MIRROR_HOST" "$IMAGE:$TAG"
  stop mirror
  stop nginx
  stop cutter
  stop plain
}

# A proxy that breaks off an answer about a blob after so many bytes, head and all. One request a connection.
cutter_program() {
  cat <<'PYTHON'
import socket, sys, threading

LISTEN, UPSTREAM, LIMIT = map(int, sys.argv[1:])

def serve(client):
    with client, socket.create_connection(("127.0.0.1", UPSTREAM)) as upstream:
        request = b""
        while b"\r\n\r\n" not in request:
            data = client.recv(65536)
            if not data:
                return
            request += data
        upstream.sendall(request)
        left = LIMIT if b"/blobs/" in request.split(b"\r\n")[0] else 1 << 62
        while left and (data := upstream.recv(min(left, 65536))):
            client.sendall(data)
            left -= len(data)
        if not left:
            print("cut")

def guarded(client):
    try:
        serve(client)
    except OSError as error:
        print(error)

for_all = socket.create_server(("127.0.0.1", LISTEN))
while True:
    threading.Thread(target=guarded, args=[for_all.accept()[0]], daemon=True).start()
PYTHON
}

# nginx passes on at once what it gets, and tells what it was asked: request, status, bytes, Range.
nginx_config() {
  cat <<NGINX
daemon off;
user root;
worker_processes 1;
pid $RUN/nginx-own.pid;
events { worker_connections 128; }
http {
  log_format asked '"\$request" \$status \$body_bytes_sent "\$http_range"';
  access_log /dev/stdout asked;
  client_body_temp_path client; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {
    listen 127.0.0.1:$NGINX_PORT;
    location / {
      proxy_pass http://127.0.0.1:$CUTTER_PORT;
      proxy_set_header Host \$http_host;
      proxy_buffering off;
    }
  }
}
NGINX
}

truncation_is_real() {
  local code=0
  http --fail --output "$WORK/cut.blob" "http://127.0.0.1:$NGINX_PORT/v2/$IMAGE/blobs/$BIG" || code=$?
  expect_equal "curl's exit code (18: a part of the file)" "$code" 18
  [ "$(stat -c %s "$WORK/cut.blob")" -lt "$CUT_BYTES" ] || fail "not cut"
}

# 32 MiB in pieces of 5 MB: six more requests, each for what is missing, as docker-registry itself logs them.
truncation_hidden() {
  local plain nginx sent more
  plain=$(upstream_mark plain); nginx=$(upstream_mark nginx)
  expect_equal "the client's bytes" "$(http --fail "$MIRROR_URL/v2/$IMAGE/blobs/$BIG" | digest_of)" "$BIG"
  more=$(upstream_requests plain GET "/blobs/$BIG HTTP/1.[01]\" 206 " "$plain")
  [ "$more" -ge 6 ] || fail "docker-registry answered $more ranges"
  expect_equal "requests for the whole" "$(upstream_requests plain GET "/blobs/$BIG HTTP/1.[01]\" 200 " "$plain")" 1
  tail -n "+$((nginx + 1))" "$LOGS/nginx.log" | grep -F "/blobs/$BIG" >"$WORK/asked"
  cat "$WORK/asked"
  expect_equal "ranges that nginx saw" "$(grep -cE ' 206 [0-9]+ "bytes=[1-9][0-9]*-' "$WORK/asked")" "$more"
  sent=$(awk '{ sent += $5 } END { printf "%d", sent }' "$WORK/asked")
  [ "$sent" -le $(((BIG_MIB << 20) * 105 / 100)) ] || fail "nginx sent $sent bytes for $BIG_MIB MiB"
}

# ---- two endpoints, the first dying ----------------------------------------------------------------------

death_checks() {
  again_start first "$FIRST_PORT" 200 </dev/null
  again_start second "$SECOND_PORT" 200 </dev/null
  mirror_for <<YAML
endpoints: ["http://127.0.0.1:$FIRST_PORT", "http://127.0.0.1:$SECOND_PORT"]
bandwidth: 8MiB
YAML
  check "upstreams: two endpoints, the first killed in mid-body" death_hidden
  check "upstreams: two endpoints, the first gone, skopeo pulls an image" pulls "$MIRROR_HOST" "$IMAGE:$TAG"
  stop mirror
  stop first
  stop second
}

at_least() { [ "$(stat -c %s "$2")" -ge "$1" ]; }

# The mirror reads at 8 MiB/s: when the client has its first 4 MiB the first endpoint is far from done.
death_hidden() {
  local first second client got=$WORK/death.blob
  first=$(upstream_mark first); second=$(upstream_mark second)
  http --fail --output "$got" "$MIRROR_URL/v2/$IMAGE/blobs/$BIG" &
  client=$!
  wait_for "the first 4 MiB" 20 at_least $((4 << 20)) "$got"
  stop first KILL
  echo "killed when the client had $(stat -c %s "$got") bytes"
  at_least $((BIG_MIB << 20)) "$got" && fail "it was over before"
  wait "$client"
  expect_equal "the client's bytes" "$(digest_of "$got")" "$BIG"
  expect_equal "answers that the first finished" "$(upstream_requests first GET "/blobs/$BIG" "$first")" 0
  expect_equal "ranges from the second" "$(upstream_requests second GET "/blobs/$BIG HTTP/1.[01]\" 206 " "$second")" 1
  expect_equal "the whole from the second" \
    "$(upstream_requests second GET "/blobs/$BIG HTTP/1.[01]\" 200 " "$second")" 0
}
