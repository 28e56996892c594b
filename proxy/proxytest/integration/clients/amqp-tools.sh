#!/bin/bash
# The command line tools of rabbitmq-c at work: OP PORT QUEUE N. Bodies are the numbers
# 0 to N-1; whatever is out of order or missing ends it with an error.
set -euo pipefail
op=$1 port=$2 queue=$3 n=$4
server=(-s 127.0.0.1 --port "$port" --username guest --password guest)

check() { [ "$1" = "$2" ] || { echo "message $2 is $1" >&2; exit 1; }; }

case $op in
publish) # one connection, a message for each line
	seq 0 $((n - 1)) | tr -d '\r' | amqp-publish "${server[@]}" -r "$queue" -p -l
	;;
short)
	for ((i = 0; i < n; i++)); do amqp-publish "${server[@]}" -r "$queue" -b "$i"; done
	;;
get)
	for ((i = 0; i < n; i++)); do check "$(amqp-get "${server[@]}" -q "$queue")" "$i"; done
	if amqp-get "${server[@]}" -q "$queue" >/dev/null; then echo "one message too many" >&2; exit 1; fi
	;;
consume)
	i=0
	while read -r body; do check "$body" "$i"; i=$((i + 1)); done < <(
		amqp-consume "${server[@]}" -q "$queue" -c "$n" -p 50 -- sh -c 'cat; echo')
	[ "$i" = "$n" ] || { echo "$i messages" >&2; exit 1; }
	;;
*) echo "unknown: $op" >&2; exit 1 ;;
esac
echo "{\"n\": $n}"
