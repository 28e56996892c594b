<?php
// php-amqplib at work: OP PORT QUEUE N. Bodies are the numbers 0 to N-1; whatever is
// out of order or missing ends it with an error.
require_once 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPSSLConnection;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

[, $op, $port, $queue, $n] = $argv;
$n = (int) $n;

function fail(string $why): never { fwrite(STDERR, $why . "\n"); exit(1); }

function connect(): AMQPStreamConnection {
    global $port;
    if ($ca = getenv('AMQP_CACERT')) { // with a CA file the port speaks TLS
        return new AMQPSSLConnection('localhost', (int) $port, 'guest', 'guest', '/', ['cafile' => $ca, 'verify_peer' => true],
            ['connection_timeout' => 30, 'read_write_timeout' => 60]);
    }
    return new AMQPStreamConnection('127.0.0.1', (int) $port, 'guest', 'guest', '/',
        false, 'AMQPLAIN', null, 'en_US', 30, 60);
}

$ms = [];
switch ($op) {
case 'publish':
    $conn = connect();
    $ch = $conn->channel();
    $ch->confirm_select();
    $ch->set_nack_handler(function () { fail('a publish was refused'); });
    $ch->set_return_listener(function () { fail('a publish came back'); });
    for ($i = 0; $i < $n; $i++) {
        $ch->basic_publish(new AMQPMessage((string) $i, ['delivery_mode' => 2, 'message_id' => "m$i"]), '', $queue, true);
        if ($i % 1000 === 999) $ch->wait_for_pending_acks_returns(60);
    }
    $ch->wait_for_pending_acks_returns(60);
    $ch->close();
    $conn->close();
    break;
case 'get':
    $conn = connect();
    $ch = $conn->channel();
    for ($i = 0; $m = $ch->basic_get($queue); $i++) {
        if ($m->getBody() !== (string) $i) fail("message $i is " . $m->getBody());
        $m->ack();
    }
    if ($i !== $n) fail("got $i messages");
    $ch->close();
    $conn->close();
    break;
case 'consume':
    $conn = connect();
    $ch = $conn->channel();
    $ch->basic_qos(0, 50, false);
    $i = 0;
    $tag = $ch->basic_consume($queue, '', false, false, false, false, function (AMQPMessage $m) use (&$i) {
        if ($m->getBody() !== (string) $i) fail("message $i is " . $m->getBody());
        $m->ack();
        $i++;
    });
    while ($i < $n) $ch->wait(null, false, 30);
    $ch->basic_cancel($tag);
    $ch->close();
    $conn->close();
    break;
case 'tx':
    $conn = connect();
    $ch = $conn->channel();
    $ch->tx_select();
    for ($i = 0; $i < $n; $i++) $ch->basic_publish(new AMQPMessage('rolled back'), '', $queue);
    $ch->tx_rollback();
    for ($i = 0; $i < $n; $i++) $ch->basic_publish(new AMQPMessage((string) $i), '', $queue);
    $ch->tx_commit();
    $conn->close();
    break;
case 'rpc':
case 'direct':
    $conn = connect();
    $ch = $conn->channel();
    $replies = $op === 'direct' ? 'amq.rabbitmq.reply-to' : $ch->queue_declare('', false, false, true)[0];
    $answer = null;
    $ch->basic_consume($replies, '', false, true, false, false, function (AMQPMessage $m) use (&$answer) { $answer = $m; });
    for ($i = 0; $i < $n; $i++) {
        $answer = null;
        $ch->basic_publish(new AMQPMessage("call $i", ['reply_to' => $replies, 'correlation_id' => "c$i"]), '', $queue);
        while (!$answer) $ch->wait(null, false, 30);
        if ($answer->getBody() !== "answer to call $i" || $answer->get('correlation_id') !== "c$i") fail("answer $i is " . $answer->getBody());
    }
    $conn->close();
    break;
case 'short': // the way of a web request: one message per connection
    for ($i = 0; $i < $n; $i++) {
        $t = hrtime(true);
        $conn = connect();
        $ch = $conn->channel();
        $ch->basic_publish(new AMQPMessage((string) $i), '', $queue);
        $ch->close();
        $conn->close();
        $ms[] = (hrtime(true) - $t) / 1e6;
    }
    break;
default:
    fail("unknown: $op");
}
echo json_encode(['n' => $n, 'ms' => $ms]), "\n";
