# pika at work: OP PORT QUEUE N. Bodies are the numbers 0 to N-1; whatever is out of
# order or missing ends it with an error.
import json
import os
import ssl
import sys
import time

import pika

op, port, queue, n = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def connect():
    ca = os.environ.get("AMQP_CACERT")  # with a CA file the port speaks TLS
    tls = pika.SSLOptions(ssl.create_default_context(cafile=ca), "localhost") if ca else None
    return pika.BlockingConnection(pika.ConnectionParameters(
        "127.0.0.1", port, ssl_options=tls, blocked_connection_timeout=60, socket_timeout=30))


ms = []
if op == "publish":
    conn = connect()
    ch = conn.channel()
    ch.confirm_delivery()
    for i in range(n):
        ch.basic_publish("", queue, str(i), pika.BasicProperties(delivery_mode=2, message_id="m%d" % i), mandatory=True)
    conn.close()
elif op == "get":
    conn = connect()
    ch = conn.channel()
    i = 0
    while True:
        m, _, body = ch.basic_get(queue)
        if m is None:
            break
        assert body == str(i).encode(), "message %d is %r" % (i, body)
        ch.basic_ack(m.delivery_tag)
        i += 1
    assert i == n, "got %d messages" % i
    conn.close()
elif op == "consume":
    conn = connect()
    ch = conn.channel()
    ch.basic_qos(prefetch_count=50)
    i = 0
    for m, _, body in ch.consume(queue, inactivity_timeout=30):
        assert m is not None, "nothing came after %d messages" % i
        assert body == str(i).encode(), "message %d is %r" % (i, body)
        ch.basic_ack(m.delivery_tag)
        i += 1
        if i == n:
            break
    ch.cancel()
    conn.close()
elif op == "tx":
    conn = connect()
    ch = conn.channel()
    ch.tx_select()
    for i in range(n):
        ch.basic_publish("", queue, "rolled back")
    ch.tx_rollback()
    for i in range(n):
        ch.basic_publish("", queue, str(i))
    ch.tx_commit()
    conn.close()
elif op in ("rpc", "direct"):
    conn = connect()
    ch = conn.channel()
    replies = "amq.rabbitmq.reply-to"
    if op == "rpc":
        replies = ch.queue_declare("", exclusive=True).method.queue
    answers = []
    ch.basic_consume(replies, lambda ch, m, p, body: answers.append((p.correlation_id, body)), auto_ack=True)
    for i in range(n):
        ch.basic_publish("", queue, "call %d" % i, pika.BasicProperties(reply_to=replies, correlation_id="c%d" % i))
        while not answers:
            conn.process_data_events(time_limit=30)
        got = answers.pop()
        assert got == ("c%d" % i, b"answer to call %d" % i), "answer %d is %r" % (i, got)
    conn.close()
elif op == "short":  # the way of a web request: one message per connection
    for i in range(n):
        t = time.perf_counter()
        conn = connect()
        conn.channel().basic_publish("", queue, str(i))
        conn.close()
        ms.append((time.perf_counter() - t) * 1e3)
else:
    sys.exit("unknown: " + op)
print(json.dumps({"n": n, "ms": ms}))
