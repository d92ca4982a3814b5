#!/bin/sh
# Needs a Citus cluster (a coordinator and at least two workers, no row in it that matters) whose URL is in TEST_CITUS_URL.
#
# Citus is in no package registry that CI reaches, so CI skips these tests. The last run's output is in docs/sharding.md.
# Shard moves need wal_level = logical on each server, and the user must be a superuser.
set -eu
cd "$(dirname "$0")/.."
: "${TEST_CITUS_URL:?set it to the coordinator, for example postgresql://postgres@127.0.0.1:9700/postgres}"
cargo test --test it citus:: -- --nocapture --test-threads=1 "$@"
