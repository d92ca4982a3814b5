# Waits until no process shares the lock any more, then stops the server and removes all of it.
# $1: the lock file, $2: the server's folder
trap '' HUP INT TERM
exec 9<>"$1"
flock --exclusive 9
# Another watchdog was here first, and the path belongs to a newer server.
[ /proc/self/fd/9 -ef "$1" ] || exit 0
if read -r pid 2>/dev/null <"$2/data/postmaster.pid"; then
    # At once: a server that is paused, or waits for a standby, would not stop in good order.
    kill -CONT "$pid" 2>/dev/null
    kill -QUIT "$pid" 2>/dev/null
    while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
fi
rm -rf "$2" "$1"
