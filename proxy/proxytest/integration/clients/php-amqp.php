<?php
// The php-amqp extension (on rabbitmq-c) at work: OP PORT QUEUE N. Bodies are the
// numbers 0 to N-1; whatever is out of order or missing ends it with an error.
[, $op, $port, $queue, $n] = $argv;
$n = (int) $n;

function fail(string $why): never { fwrite(STDERR, $why . "\n"); exit(1); }

function connect(): AMQPConnection {
    global $port;
    // With a CA file the port speaks TLS. php-amqp takes localhost for the name to verify.
    $tls = getenv('AMQP_CACERT') ? ['cacert' => getenv('AMQP_CACERT'), 'verify' => true] : [];
    $c = new AMQPConnection($tls + ['host' => $tls ? 'localhost' : '127.0.0.1',
        'port' => (int) $port, 'login' => 'guest', 'password' => 'guest', 'vhost' => '/',
        'read_timeout' => 30, 'write_timeout' => 30, 'connect_timeout' => 30, 'rpc_timeout' => 30]);
    $c->connect();
    return $c;
}

function queue(AMQPChannel $ch, string $name): AMQPQueue {
    $q = new AMQPQueue($ch);
    $q->setName($name);
    return $q;
}

$ms = [];
switch ($op) {
case 'publish':
    $conn = connect();
    $ch = new AMQPChannel($conn);
    $ch->confirmSelect();
    $acked = 0;
    $ch->setConfirmCallback(
        function (int $tag, bool $multiple) use (&$acked, $n) {
            $acked = $multiple ? $tag : $acked + 1;
            return $acked < $n;
        },
        function () { fail('a publish was refused'); });
    $ex = new AMQPExchange($ch);
    for ($i = 0; $i < $n; $i++) {
        $ex->publish((string) $i, $queue, AMQP_MANDATORY, ['delivery_mode' => 2, 'message_id' => "m$i"]);
    }
    // Several acks may be counted twice by "multiple"; what counts is the harness's own count.
    $ch->waitForConfirm(60.0);
    $conn->disconnect();
    break;
case 'get':
    $conn = connect();
    $q = queue(new AMQPChannel($conn), $queue);
    for ($i = 0; $m = $q->get(); $i++) {
        if ($m->getBody() !== (string) $i) fail("message $i is " . $m->getBody());
        $q->ack($m->getDeliveryTag());
    }
    if ($i !== $n) fail("got $i messages");
    $conn->disconnect();
    break;
case 'consume':
    $conn = connect();
    $ch = new AMQPChannel($conn);
    $ch->setPrefetchCount(50);
    $q = queue($ch, $queue);
    $i = 0;
    $q->consume(function (AMQPEnvelope $m, AMQPQueue $q) use (&$i, $n) {
        if ($m->getBody() !== (string) $i) fail("message $i is " . $m->getBody());
        $q->ack($m->getDeliveryTag());
        return ++$i < $n;
    });
    $q->cancel();
    $conn->disconnect();
    break;
case 'tx':
    $conn = connect();
    $ch = new AMQPChannel($conn);
    $ex = new AMQPExchange($ch);
    $ch->startTransaction();
    for ($i = 0; $i < $n; $i++) $ex->publish('rolled back', $queue);
    $ch->rollbackTransaction();
    for ($i = 0; $i < $n; $i++) $ex->publish((string) $i, $queue);
    $ch->commitTransaction();
    $conn->disconnect();
    break;
case 'rpc':
case 'direct':
    $conn = connect();
    $ch = new AMQPChannel($conn);
    $ex = new AMQPExchange($ch);
    if ($op === 'rpc') {
        $replies = new AMQPQueue($ch);
        $replies->setFlags(AMQP_EXCLUSIVE);
        $replies->declareQueue();
    } else {
        $replies = queue($ch, 'amq.rabbitmq.reply-to');
    }
    $replies->consume(null, AMQP_AUTOACK);
    for ($i = 0; $i < $n; $i++) {
        $ex->publish("call $i", $queue, AMQP_NOPARAM, ['reply_to' => $replies->getName(), 'correlation_id' => "c$i"]);
        $replies->consume(function (AMQPEnvelope $m) use ($i) {
            if ($m->getBody() !== "answer to call $i" || $m->getCorrelationId() !== "c$i") fail("answer $i is " . $m->getBody());
            return false;
        }, AMQP_JUST_CONSUME);
    }
    $conn->disconnect();
    break;
case 'short': // the way of a web request: one message per connection
    for ($i = 0; $i < $n; $i++) {
        $t = hrtime(true);
        $conn = connect();
        (new AMQPExchange(new AMQPChannel($conn)))->publish((string) $i, $queue);
        $conn->disconnect();
        $ms[] = (hrtime(true) - $t) / 1e6;
    }
    break;
default:
    fail("unknown: $op");
}
echo json_encode(['n' => $n, 'ms' => $ms]), "\n";
