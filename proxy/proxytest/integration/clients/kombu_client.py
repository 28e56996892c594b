# kombu (on py-amqp) at work: OP PORT QUEUE N. Bodies are the numbers 0 to N-1;
# whatever is out of order or missing ends it with an error.
import json
import socket
import sys
import time

import kombu

op, port, queue, n = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def connect():
    c = kombu.Connection("amqp://guest:guest@127.0.0.1:%d//" % port, connect_timeout=30,
                         transport_options={"confirm_publish": True})
    c.connect()
    return c


def text(m):
    return m.body.decode() if isinstance(m.body, bytes) else m.body


ms = []
if op == "publish":
    with connect() as conn:
        p = kombu.Producer(conn.channel())
        for i in range(n):
            p.publish(str(i), routing_key=queue, delivery_mode=2, message_id="m%d" % i, mandatory=True)
elif op == "get":
    with connect() as conn:
        ch = conn.channel()
        i = 0
        while True:
            m = ch.basic_get(queue)
            if m is None:
                break
            assert text(m) == str(i), "message %d is %r" % (i, m.body)
            ch.basic_ack(m.delivery_tag)
            i += 1
        assert i == n, "got %d messages" % i
elif op == "consume":
    with connect() as conn:
        ch = conn.channel()
        seen = 0

        def on_message(m):
            global seen
            assert text(m) == str(seen), "message %d is %r" % (seen, m.body)
            m.ack()
            seen += 1

        with kombu.Consumer(ch, [kombu.Queue(queue, no_declare=True)], on_message=on_message,
                            prefetch_count=50, accept=["text/plain"]):
            while seen < n:
                conn.drain_events(timeout=30)
elif op == "tx":
    with connect() as conn:
        ch = conn.default_channel.connection.channel()  # py-amqp's own
        ch.tx_select()
        from amqp import Message
        for i in range(n):
            ch._basic_publish(Message("rolled back"), routing_key=queue)
        ch.tx_rollback()
        for i in range(n):
            ch._basic_publish(Message(str(i)), routing_key=queue)
        ch.tx_commit()
elif op in ("rpc", "direct"):
    with connect() as conn:
        ch = conn.channel()
        replies = "amq.rabbitmq.reply-to"
        if op == "rpc":
            replies = ch.queue_declare(queue="", exclusive=True).queue
        answers = []
        with kombu.Consumer(ch, [kombu.Queue(replies, no_declare=True)], no_ack=True,
                            on_message=answers.append, accept=["text/plain"]):
            p = kombu.Producer(ch)
            for i in range(n):
                p.publish("call %d" % i, routing_key=queue, reply_to=replies, correlation_id="c%d" % i)
                while not answers:
                    conn.drain_events(timeout=30)
                m = answers.pop()
                got = (m.properties["correlation_id"], text(m))
                assert got == ("c%d" % i, "answer to call %d" % i), "answer %d is %r" % (i, got)
elif op == "short":  # the way of a web request: one message per connection
    for i in range(n):
        t = time.perf_counter()
        with connect() as conn:
            kombu.Producer(conn.channel()).publish(str(i), routing_key=queue)
        ms.append((time.perf_counter() - t) * 1e3)
else:
    sys.exit("unknown: " + op)
print(json.dumps({"n": n, "ms": ms}))
