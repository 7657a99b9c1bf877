#!/usr/bin/env bash
# Builds the image with buildah where no base image can be pulled: from a binary that is already built and, where that is not
# static, from the libraries of this Debian. The settings are those of the Dockerfile's last stage, taken from there.
#
#   packaging/image.sh                                   target/release/pierhead as localhost/pierhead:VERSION
#   packaging/image.sh --binary FILE --tag NAME --output oci-archive:FILE
#
# Needs root and Debian's packages buildah, binutils and ca-certificates. Prints what is in the image. The date is that of
# $SOURCE_DATE_EPOCH, or of the last commit, so that the same sources give the same layer.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")

binary=$top/target/release/pierhead
tag=""
output=""
while [ $# -gt 0 ]; do
  case $1 in
    --binary) binary=$2; shift 2 ;;
    --tag) tag=$2; shift 2 ;;
    --output) output=$2; shift 2 ;;
    *) echo "unknown argument: $1; see the head of this file" >&2; exit 2 ;;
  esac
done
[ -x "$binary" ] || { echo "there is no program at $binary: run 'cargo build --release' first" >&2; exit 2; }

version=$("$binary" --version | cut -d' ' -f2)
revision=$(git -C "$top" rev-parse HEAD 2>/dev/null || echo unknown)
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 0)}
tag=${tag:-localhost/pierhead:$version}

work=$(mktemp -d "${TMPDIR:-/tmp}/pierhead-image.XXXXXX")
trap 'rm -rf "$work"' EXIT

"$here/rootfs.sh" "$binary" "$work/rootfs"

# A tar file keeps the owner of the cache's folder, which COPY from a folder would not.
mkdir "$work/context"
tar --create --file "$work/context/rootfs.tar" --directory "$work/rootfs" --sort=name --mtime="@$epoch" --numeric-owner .
sed -n '/^FROM scratch/,$p' "$here/Dockerfile" |
  sed 's#^COPY --from=build /rootfs/ /$#ADD rootfs.tar /#' >"$work/context/Dockerfile"
grep -q '^ADD rootfs.tar' "$work/context/Dockerfile" || { echo "the Dockerfile's last stage has changed: adapt this script" >&2; exit 1; }

# Docker's format, as OCI's has no health check. Storage without kernel support works everywhere.
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
buildah build --format docker --timestamp "$epoch" --tag "$tag" \
  --build-arg VERSION="$version" --build-arg REVISION="$revision" \
  --build-arg CREATED="$(date --utc --date="@$epoch" +%Y-%m-%dT%H:%M:%SZ)" \
  "$work/context"
[ -z "$output" ] || buildah push "$tag" "$output"

echo
echo "$tag:"
tar --list --verbose --numeric-owner --file "$work/context/rootfs.tar" | awk '{print $1, $2, $3, $6, $7, $8}' | column -t
