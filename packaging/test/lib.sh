# Shared by the lifecycles in this directory: steps with their times, the table's rows,
# broker and traffic. Sourced after packaging/lib.sh by scripts that packaging/test/run starts.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/booted.sh"

HERE=$TOP/packaging/test
# Given by ./run: WORK, a private directory; RESULTS, the table so far; OLD and NEW, the
# two versions built into $WORK/old and $WORK/new.
: "${WORK:?start me through packaging/test/run}" "${RESULTS:?}" "${OLD:?}" "${NEW:?}"
LIFE=${0##*/}
MINE=$(mktemp -d "$WORK/$LIFE.XXXXXX")
NOTE=$MINE/note
cleanups=()
on_exit() { cleanups=("$1" "${cleanups[@]}"); }
finish() {
    local rc=$? c
    for c in "${cleanups[@]}"; do eval "$c" || true; done
    [ "$rc" != 0 ] || [ -z "$went_on" ] || rc=1
    exit $rc
}
trap finish EXIT

# note TEXT: goes into the table beside the step that runs.
note() { printf '%s; ' "$*" >>"$NOTE"; }

# step NAME FUNCTION [ARG]...: runs it, prints and records how it went. The first failure
# ends this lifecycle: what follows would only fail of the same cause. With "try" in place
# of "step" it goes on, and fails at its end: for a step that no other builds on.
went_on=
try() { GO_ON=1 step "$@"; }
step() {
    local name=$1 began rc=0 took said
    shift
    : >"$NOTE"
    began=$(date +%s%N)
    # A subshell of its own keeps set -e working inside the function.
    set +e
    (set -e; "$@") >"$MINE/log" 2>&1
    rc=$?
    set -e
    took=$(awk "BEGIN{printf \"%.1f\", ($(date +%s%N) - $began) / 1e9}")
    said=$(sed 's/; $//' "$NOTE")
    if [ $rc = 0 ]; then
        printf '%s|%s|ok|%s|%s\n' "$LIFE${TAG:+ $TAG}" "$name" "$took" "$said" >>"$RESULTS"
        printf '  ok    %5s s  %s: %s%s\n' "$took" "$LIFE${TAG:+ $TAG}" "$name" "${said:+ ($said)}"
    else
        printf '%s|%s|FAILED|%s|%s\n' "$LIFE${TAG:+ $TAG}" "$name" "$took" "$said" >>"$RESULTS"
        printf '  FAIL  %5s s  %s: %s%s\n' "$took" "$LIFE${TAG:+ $TAG}" "$name" "${said:+ ($said)}"
        sed 's/^/        | /' "$MINE/log" | tail -n 60
        type explain >/dev/null 2>&1 && explain 2>&1 | sed 's/^/        > /' | tail -n 40
        [ -n "${GO_ON:-}" ] || exit 1
        went_on=1
    fi
}

# same WHAT GOT WANT
same() { [ "$2" = "$3" ] || { echo "$1 is \"$2\", wanted \"$3\""; return 1; }; }
# soon COMMAND...: until it holds. The bound measures nothing: a machine may have much else to do.
soon() {
    local end=$(($(date +%s) + 240)) said
    until said=$("$@" 2>&1); do
        [ "$(date +%s)" -lt "$end" ] || { echo "never came true: $*: $said"; return 1; }
        sleep 0.1
    done
}

# start_broker: RabbitMQ on 5672 and 5671 of this name space; CA is its authority.
start_broker() {
    "$WORK/bin/broker" >"$MINE/broker.out" 2>"$MINE/broker.err" &
    local pid=$!
    on_exit "kill $pid 2>/dev/null; wait $pid 2>/dev/null"
    soon test -s "$MINE/broker.out" || { cat "$MINE/broker.err"; die "RabbitMQ did not start"; }
    CA=$(cat "$MINE/broker.out")
}

# put_repo NAME: what $WORK/NAME holds is served as http://127.0.0.1:8099, as INSTALL.md has it.
WWW=$MINE/www
put_repo() { rm -rf "$WWW"; cp -r "$WORK/$1" "$WWW"; }
start_server() {
    mkdir -p "$WWW"
    php -S 127.0.0.1:8099 -t "$WWW" >"$MINE/server.log" 2>&1 &
    on_exit "kill $! 2>/dev/null"
    soon grep -q started "$MINE/server.log"
}

# traffic PORT N: PHP, one message per connection, then all got back.
traffic() {
    local said
    said=$(timeout 120 php "$TOP/service/testbed/traffic.php" once "$1" "$2" 2>&1) || { echo "PHP: $said"; return 1; }
    note "PHP: $said"
}

# client_start MODE PORT: a PHP client (hold, stay, churn, downtime, and control, which is downtime
# at a port that nothing happens to), once it is at work; client_end lets it finish and prints its
# last words.
client_start() {
    CLIENT_FILE=$MINE/client-$1
    rm -f "$CLIENT_FILE" "$CLIENT_FILE.out" "$CLIENT_FILE.up"
    if [ "$1" = downtime ] || [ "$1" = control ]; then
        timeout 180 php "$HERE/downtime.php" "$2" "$CLIENT_FILE" >"$CLIENT_FILE.out" 2>&1 &
    else
        timeout 180 php "$TOP/service/testbed/traffic.php" "$1" "$2" "$CLIENT_FILE" >"$CLIENT_FILE.out" 2>&1 &
    fi
    echo $! >"$CLIENT_FILE.pid"
    soon client_works "$CLIENT_FILE$([ "$1" = stay ] || echo .up)"
    kill -0 "$(cat "$CLIENT_FILE.pid")" || { cat "$CLIENT_FILE.out"; return 1; }
}
client_works() { test -e "$1" || ! kill -0 "$(cat "$CLIENT_FILE.pid")"; }
# short_downtime: after both have ended. The longest time without a connection is under a
# second, and five times what the control had to wait on the same machine at the same time.
short_downtime() {
    local gap control
    gap=$(longest downtime)
    control=$(longest control)
    [ "$gap" -lt $((1000 + 5 * control)) ] ||
        { echo "down for $gap ms, wanted under 1000 and five times the $control ms of a control at the broker"; return 1; }
}
longest() { sed -n 's/.*longest without one \([0-9]*\) ms.*/\1/p' "$MINE/client-$1.out"; }
client_end() {
    local f=$MINE/client-$1 pid
    pid=$(cat "$f.pid")
    [ "$1" = stay ] || touch "$f"
    # Started in this very shell or not: wait for it either way.
    timeout 120 tail --pid="$pid" -f /dev/null
    note "$1: $(tr '\n' ' ' <"$f.out")"
    ! grep -q '^broken\|Fatal\|^after' "$f.out" || [ "$1" = stay ]
}

# client_leaves NAME: a client that stays goes by itself; until then it was served.
client_leaves() {
    local pid out=$MINE/client-$1.out
    pid=$(cat "$MINE/client-$1.pid")
    kill -0 "$pid" 2>/dev/null || { echo "the client $1 was cut:"; cat "$out"; return 1; }
    pkill -KILL -P "$pid" php || true
    timeout 60 tail --pid="$pid" -f /dev/null
    note "$1: served throughout"
}

# taken_over PID: the service has another main process, once systemd has heard of it, of the program that lies there.
taken_over() {
    soon another "$1"
    same "the program of process $(state MainPID)" "$(inside readlink "/proc/$(state MainPID)/exe")" /usr/bin/amqproxysvc
    soon active
}
another() { [ "$(state MainPID)" != "$1" ]; }
active() { [ "$(state ActiveState)" = active ]; }

# load_start NAME N PORT: N PHP clients (load.php; "loop" loops, others consume), and waits until all
# are at work; load_end NAME lets them finish.
load_start() {
    local mode=consume i up=$MINE/load-$1.up
    [ "$1" != loop ] || mode=loop
    rm -f "$MINE/load-$1".*
    : >"$up"
    for i in $(seq "$2"); do
        timeout 400 php "$HERE/load.php" $mode "$3" "$MINE/load-$1.end" "$up" >"$MINE/load-$1.$i.out" 2>"$MINE/load-$1.$i.err" &
        echo $! >>"$MINE/load-$1.pids"
    done
    soon eval "[ \$(stat -c %s '$up') = $2 ]"
}
load_end() {
    touch "$MINE/load-$1.end"
    local pid
    while read -r pid; do timeout 120 tail --pid="$pid" -f /dev/null; done <"$MINE/load-$1.pids"
}
