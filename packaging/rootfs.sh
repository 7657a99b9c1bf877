#!/bin/sh
# Lays out the image's file system: packaging/rootfs.sh BINARY FOLDER
#
# The binary, without its debug information; the CA certificates of the system this runs on; a user; the configuration; the
# cache's folder. A binary that is not static also gets the libraries it is linked to (packaging/image.sh on Debian).
# In plain sh, as it runs on Alpine in the Dockerfile. Must be root: the cache's folder belongs to the image's user.
set -eu

binary=$1
root=$2
here=$(dirname "$0")
user=65532

[ ! -e "$root" ] || { echo "$root is already there" >&2; exit 1; }
mkdir -p "$root/usr/bin" "$root/etc/pierhead" "$root/etc/ssl/certs" "$root/var/lib/pierhead"

strip --strip-debug -o "$root/usr/bin/pierhead" "$binary"
chmod 755 "$root/usr/bin/pierhead"

# Where rustls looks for them on every system; one file, as nothing here reads a folder of hashes.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"

echo "pierhead:x:$user:$user:pierhead:/var/lib/pierhead:/sbin/nologin" >"$root/etc/passwd"
echo "pierhead:x:$user:" >"$root/etc/group"

cp "$here/image/pierhead.yaml" "$root/etc/pierhead/pierhead.yaml"
chmod 644 "$root/etc/pierhead/pierhead.yaml" "$root/etc/ssl/certs/ca-certificates.crt"

# NEEDED names the libraries, ldd tells where they are and which loader finds them.
if readelf -d "$binary" | grep -q NEEDED; then
  ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
  done
  # Host files first, then DNS, as resolvers elsewhere have it.
  echo "hosts: files dns" >"$root/etc/nsswitch.conf"
fi

chown "$user:$user" "$root/var/lib/pierhead"
chmod 750 "$root/var/lib/pierhead"
