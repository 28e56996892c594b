# pika with the loop of its documentation: PORT QUEUE. Publishes and consumes, and prints
# "served" for each message that comes back, until it is killed. What pika takes for a
# refused login ends it, as it would end an application.
import sys
import time

import pika
from pika import exceptions

port, queue = int(sys.argv[1]), sys.argv[2]
while True:
    try:
        conn = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", port, heartbeat=4, socket_timeout=5))
        ch = conn.channel()
        ch.basic_qos(prefetch_count=10)
        ch.queue_declare(queue, durable=True)
        for method, _, _ in ch.consume(queue, inactivity_timeout=0.25):
            if method:
                ch.basic_ack(method.delivery_tag)
                print("served", flush=True)
                time.sleep(0.25)
            ch.basic_publish("", queue, b"x")
    except (exceptions.AuthenticationError, exceptions.ProbableAuthenticationError, exceptions.ProbableAccessDeniedError) as e:
        print("recovery ends: %r" % e, flush=True)
        sys.exit(1)
    except exceptions.AMQPConnectionError as e:
        print(repr(e), flush=True)
    time.sleep(1)
