# What pika hears of each login: PORT CAFILE ATTEMPTS.
import json
import logging
import ssl
import sys

import pika

logging.disable(logging.CRITICAL)
port, ca, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
heard = []
for a in json.load(open(file)):
    tls = ssl.create_default_context(cafile=ca)
    if a["cert"]:
        tls.load_cert_chain(a["cert"], a["key"])
    who = pika.credentials.ExternalCredentials() if a["mechanism"] == "EXTERNAL" else pika.PlainCredentials(a["user"], a["password"])
    try:
        c = pika.BlockingConnection(pika.ConnectionParameters(
            "127.0.0.1", port, credentials=who, ssl_options=pika.SSLOptions(tls, "localhost"), socket_timeout=30))
        c.channel()
        c.close()
        heard.append("<nil>")
    except Exception as e:
        heard.append(repr(e))
print(json.dumps(heard))
