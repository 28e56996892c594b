# pika doing what applications are advised against, each in an application's name of its own:
# HABIT PORT, until it is ended.
import sys
import threading
import time

import pika

habit, port = sys.argv[1], int(sys.argv[2])


def connect(name=None, heartbeat=30):
    return pika.BlockingConnection(pika.ConnectionParameters(
        "127.0.0.1", port, heartbeat=heartbeat, blocked_connection_timeout=60,
        client_properties={"connection_name": habit if name is None else name} if name != "" else None))


def serve(connections):
    while True:
        for c in connections:
            c.process_data_events(0)
        time.sleep(1)


if habit == "well-behaved":
    conn = connect()
    ch = conn.channel()
    ch.queue_declare("advised-well", auto_delete=False, durable=True)
    ch.basic_qos(prefetch_count=100)
    ch.basic_consume("advised-well", lambda c, m, p, body: c.basic_ack(m.delivery_tag))
    while True:
        for _ in range(10):
            ch.basic_publish("", "advised-well", b"x")
        conn.process_data_events(0)
        time.sleep(1)
elif habit == "channel-leak":
    conn = connect()
    while True:
        conn.channel()
        conn.process_data_events(1)
elif habit == "channel-per-publish":
    conn = connect()
    while True:
        ch = conn.channel()
        ch.basic_publish("amq.fanout", "", b"x")
        ch.close()
        conn.process_data_events(0.02)
elif habit == "polling":
    conn = connect()
    ch = conn.channel()
    ch.queue_declare("advised-empty", durable=True)
    while True:
        ch.basic_get("advised-empty", auto_ack=True)
        conn.process_data_events(0.1)
elif habit == "declare-per-publish":
    conn = connect()
    ch = conn.channel()
    while True:
        ch.queue_declare("advised-declared", durable=True, arguments={"x-max-length": 10})
        ch.basic_publish("", "advised-declared", b"x")
        conn.process_data_events(0.05)
elif habit == "big-messages":
    conn = connect()
    ch = conn.channel()
    while True:
        ch.basic_publish("amq.fanout", "", b"x" * 1_100_000)
        conn.process_data_events(2)
elif habit == "no-prefetch":
    all = []
    for _ in range(6):
        all.append(connect())
        ch = all[-1].channel()
        ch.queue_declare("advised-all", durable=True)
        ch.basic_consume("advised-all", lambda c, m, p, body: c.basic_ack(m.delivery_tag))
    serve(all)
elif habit == "unnamed":
    serve([connect("") for _ in range(25)])
elif habit == "connection-held-idle":
    serve([connect() for _ in range(60)])
elif habit == "no-heartbeat":
    held = connect(heartbeat=0)
    ch = held.channel()
    while True:
        ch.basic_publish("amq.fanout", "", b"x")
        held.process_data_events(5)
else:
    sys.exit("no such habit: " + habit)
