#!/usr/bin/env bash
# Checks what is packaged: unit files, image, Dockerfile, Debian package, and their configurations.
#
#   packaging/check.sh               needs root, a built program, and Debian's packages systemd, buildah, binutils,
#                                    busybox-static, ca-certificates, man-db and jq; the Debian package is built where cargo-deb is
#   packaging/check.sh --install     also installs that package on this machine, runs it, and removes it; for CI
#
# $PIERHEAD names the program, or else target/release/pierhead. The last line says 'N passed, N failed'.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
pierhead=${PIERHEAD:-$top/target/release/pierhead}
[ -x "$pierhead" ] || { echo "there is no program at $pierhead: run 'cargo build --release' first" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/pierhead-packaging.XXXXXX")
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

# check NAME FUNCTION: the function runs in a shell of its own, where the first failing command ends it.
check() {
  if (set -euo pipefail; "$2") >"$work/out" 2>&1 </dev/null; then
    passed=$((passed + 1)); echo "  ok    $1"
  else
    failed=$((failed + 1)); echo "  FAIL  $1"; sed 's/^/        /' "$work/out"
  fi
}
skip() { skipped=$((skipped + 1)); echo "  skip  $1"; }

# --- the program's own configurations ---------------------------------------------------------------------------------

configurations() {
  "$pierhead" check --config "$here/image/pierhead.yaml"
  "$pierhead" check --config "$here/debian/pierhead.yaml"
}

assist() {
  "$here/assist.sh" "$pierhead" "$work/assist"
  bash -n "$work/assist/pierhead.bash"
  grep -q '^#compdef pierhead' "$work/assist/_pierhead"
  grep -q 'complete -c pierhead' "$work/assist/pierhead.fish"
  # A page that man can set without a warning.
  [ -z "$(man --warnings --local-file "$work/assist/pierhead.1" 2>&1 >/dev/null)" ]
}

# --- systemd ------------------------------------------------------------------------------------------------------------

# A root folder with our units between systemd's own, since verify also follows what they lean on.
unit_root() {
  mkdir -p "$work/units"/{bin,etc,usr/bin,usr/lib/systemd}
  cp -a /usr/lib/systemd/system "$work/units/usr/lib/systemd/"
  cp "$here"/systemd/*.service "$here"/systemd/optional/*.socket "$work/units/usr/lib/systemd/system/"
  cp /bin/kill "$work/units/bin/"
  cp /bin/true "$work/units/usr/bin/pierhead"
  echo 'pierhead:x:999:999::/:/bin/false' >"$work/units/etc/passwd"
  echo 'pierhead:x:999:' >"$work/units/etc/group"
}

units() {
  unit_root
  systemd-analyze verify --man=no --root="$work/units" pierhead.service pierhead.socket >"$work/verify" 2>&1
  cat "$work/verify"
  [ ! -s "$work/verify" ]
}

# Of 10, the less the better; what the unit has today is 1.2.
unit_exposure() { systemd-analyze security --offline=yes --root="$work/units" --threshold=13 --no-pager pierhead.service; }

# The program is started, checked and configured by the same words everywhere.
unit_commands() {
  grep -hoP '^Exec\w+=/usr/bin/pierhead \K.*' "$here/systemd/pierhead.service" | while read -r line; do
    # shellcheck disable=SC2086  # words of a command line
    "$pierhead" $line --help >/dev/null
  done
}

# --- the image ------------------------------------------------------------------------------------------------------------

# Nothing may leave traces in this machine's own store.
storage() {
  printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/store"\nrunroot = "%s/run"\n' "$work" "$work" >"$work/storage.conf"
  export CONTAINERS_STORAGE_CONF=$work/storage.conf STORAGE_DRIVER=vfs
}

rootfs() {
  "$here/rootfs.sh" "$pierhead" "$work/rootfs"
  # What is in it: this, and for a binary that is not static its libraries.
  (cd "$work/rootfs" && find . -type f | sort | grep -v -e '^./lib' -e nsswitch.conf) >"$work/files"
  diff - "$work/files" <<'LIST'
./etc/group
./etc/passwd
./etc/pierhead/pierhead.yaml
./etc/ssl/certs/ca-certificates.crt
./usr/bin/pierhead
LIST
  [ "$(grep -c 'BEGIN CERTIFICATE' "$work/rootfs/etc/ssl/certs/ca-certificates.crt")" -gt 50 ]
  # As its user, with nothing but what is there.
  chroot --userspec=65532:65532 "$work/rootfs" /usr/bin/pierhead check --config /etc/pierhead/pierhead.yaml
}

image() {
  storage
  "$here/image.sh" --binary "$pierhead" --tag localhost/pierhead:check
  buildah inspect --type image localhost/pierhead:check | jq --exit-status '.Docker.config |
    .User == "65532:65532" and .Entrypoint == ["/usr/bin/pierhead"] and .Cmd == ["serve"] and
    .Healthcheck.Test == ["CMD", "/usr/bin/pierhead", "health"] and
    (.Volumes | has("/var/lib/pierhead")) and .Labels["org.opencontainers.image.licenses"] == "Apache-2.0"'
}

# The same program and the same date make the same layer. (Docker's format has a random number in its settings.)
image_again() {
  storage
  "$here/image.sh" --binary "$pierhead" --tag localhost/pierhead:again
  for tag in check again; do buildah inspect --type image "localhost/pierhead:$tag" | jq .Docker.rootfs >"$work/$tag.json"; done
  diff "$work/check.json" "$work/again.json"
}

health_check() { "$pierhead" health --help >/dev/null; }

# The Dockerfile from its first line to its last, with a stand-in for the image with Rust: a shell, and a cargo that hands over
# the program that is already built. That it compiles for musl is for whoever can pull that image.
dockerfile() {
  storage
  local stand_in=$work/stand-in applet
  mkdir -p "$stand_in"/{bin,prebuilt,tmp,etc/ssl/certs}
  cp "$(command -v busybox)" "$stand_in/bin/busybox"
  for applet in sh cp mkdir chmod chown dirname grep readlink; do ln -s busybox "$stand_in/bin/$applet"; done
  cp "$pierhead" "$stand_in/prebuilt/pierhead"
  cp -L /etc/ssl/certs/ca-certificates.crt "$stand_in/etc/ssl/certs/"
  cat >"$stand_in/bin/cargo" <<'CARGO'
#!/bin/sh
# What the build needs is there, and what it does not need is not.
set -e
[ -f Cargo.toml ]
[ -f Cargo.lock ]
[ -f src/main.rs ]
[ ! -e tests ]
[ ! -e .git ]
mkdir -p target/release
cp /prebuilt/pierhead target/release/
CARGO
  # shellcheck disable=SC2016  # for the shell in the image
  printf '#!/bin/sh\n[ "$1" = --strip-debug ] && [ "$2" = -o ] && cp "$4" "$3"\n' >"$stand_in/bin/strip"
  printf '#!/bin/sh\n' >"$stand_in/bin/readelf" # a static binary needs nothing
  chmod +x "$stand_in"/bin/{cargo,strip,readelf}
  printf 'FROM scratch\nCOPY . /\nENV PATH=/bin\n' >"$work/stand-in.Dockerfile"
  buildah build --quiet --tag localhost/stand-in --file "$work/stand-in.Dockerfile" "$stand_in"
  buildah build --isolation chroot --format docker --tag localhost/pierhead:dockerfile \
    --build-arg RUST_IMAGE=localhost/stand-in --ignorefile "$here/Dockerfile.dockerignore" \
    --file "$here/Dockerfile" "$top"
  local container folder
  container=$(buildah from localhost/pierhead:dockerfile)
  folder=$(buildah mount "$container")
  find "$folder" -type f | sort
  cmp "$pierhead" "$folder/usr/bin/pierhead"
  [ "$(stat -c %u:%g:%a "$folder/var/lib/pierhead")" = 65532:65532:750 ]
}

# --- the Debian package ---------------------------------------------------------------------------------------------------

# In a copy of what it takes, so that it works before Cargo.toml has the block, and never rebuilds anything.
deb() {
  local tree=$work/tree
  mkdir -p "$tree/target/release"
  cp -r "$top"/{Cargo.lock,LICENSE,config,charts,packaging,src,third_party} "$tree/"
  [ ! -d "$top/benches" ] || cp -r "$top/benches" "$tree/"
  if grep -q '^\[package.metadata.deb\]' "$top/Cargo.toml"; then
    cp "$top/Cargo.toml" "$tree/"
  else
    cat "$top/Cargo.toml" "$here/deb.toml" >"$tree/Cargo.toml"
  fi
  cp "$pierhead" "$tree/target/release/pierhead"
  "$here/assist.sh" "$pierhead" "$tree/target/assist"
  (cd "$tree" && cargo deb --no-build --strip --offline --output "$work/pierhead.deb")
  dpkg-deb --info "$work/pierhead.deb"
  dpkg-deb --contents "$work/pierhead.deb" | awk '{print $6}' | sort >"$work/contents"
  cat "$work/contents"
  local wanted
  for wanted in ./usr/bin/pierhead ./etc/pierhead/pierhead.yaml ./usr/lib/systemd/system/pierhead.service \
    ./usr/share/doc/pierhead/examples/systemd/pierhead.socket ./usr/share/man/man1/pierhead.1.gz \
    ./usr/share/bash-completion/completions/pierhead ./usr/share/zsh/vendor-completions/_pierhead \
    ./usr/share/fish/vendor_completions.d/pierhead.fish ./usr/share/doc/pierhead/copyright \
    ./usr/share/doc/pierhead/examples/kubernetes-node.yaml; do
    grep -qx "$wanted" "$work/contents"
  done
  # The socket is for whoever enables it.
  dpkg-deb --ctrl-tarfile "$work/pierhead.deb" | tar --extract --to-stdout --file - ./postinst >"$work/postinst"
  grep -q 'enable pierhead.service' "$work/postinst"
  ! grep -q pierhead.socket "$work/postinst"
}

deb_installs() {
  apt-get install -qq -y --no-install-recommends "$work/pierhead.deb"
  getent passwd pierhead
  pierhead --version
  runuser -u pierhead -- /usr/bin/pierhead check --config /etc/pierhead/pierhead.yaml
  runuser -u pierhead -- /usr/bin/pierhead demo
  systemd-analyze verify --man=no pierhead.service
}

deb_is_removed() {
  apt-get purge -qq -y pierhead
  [ ! -e /usr/bin/pierhead ]
  [ ! -e /etc/pierhead ]
  [ ! -e /usr/lib/systemd/system/pierhead.service ]
  deluser --quiet pierhead
}

# --------------------------------------------------------------------------------------------------------------------------

check "the configurations are good" configurations
check "manual page and completions" assist
check "systemd-analyze verify" units
check "systemd-analyze security" unit_exposure
check "the unit's command lines" unit_commands
check "the image's file system" rootfs
check "the image" image
check "the image is reproducible" image_again
check "the image's health check" health_check
check "the Dockerfile" dockerfile
if cargo deb --version >/dev/null 2>&1; then
  check "the Debian package" deb
  if [ "${1:-}" = --install ]; then
    check "the Debian package installs and runs" deb_installs
    check "the Debian package is removed" deb_is_removed
  fi
else
  skip "the Debian package: there is no cargo-deb here (cargo install cargo-deb)"
fi

echo
echo "$passed passed, $failed failed$([ "$skipped" = 0 ] || echo ", $skipped skipped")"
[ "$failed" = 0 ]
