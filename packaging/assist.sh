#!/bin/sh
# Writes the manual page and the shell completions, as the program prints them: packaging/assist.sh BINARY FOLDER
# The Debian package takes them from target/assist.
set -eu
binary=$1
out=$2
mkdir -p "$out"
"$binary" man >"$out/pierhead.1"
"$binary" completions bash >"$out/pierhead.bash"
"$binary" completions zsh >"$out/_pierhead"
"$binary" completions fish >"$out/pierhead.fish"
