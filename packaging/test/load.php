<?php
// load.php MODE PORT FILE UP: one of many clients at work until FILE is there, of the one queue
// that all share. Each adds a dot to UP once it works.
//   loop       as requests of a web server: connect, publish with a confirm, disconnect, a pause;
//              says how many it published, how often it was refused, how often cut off
//   consume    one connection that acknowledges what comes, and once FILE is there to the last message
[, $mode, $port, $file, $up] = $argv;
const QUEUE = 'upgrade-load';

function open(string $port): AMQPChannel {
    $c = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int)$port, 'login' => 'guest', 'password' => 'guest',
        'connect_timeout' => 60, 'read_timeout' => 60, 'write_timeout' => 60]);
    $c->connect();
    return new AMQPChannel($c);
}
function queue(AMQPChannel $ch): AMQPQueue {
    $q = new AMQPQueue($ch);
    $q->setName(QUEUE);
    $q->declareQueue();
    return $q;
}
function there(string $file): bool {
    clearstatcache();
    return file_exists($file);
}
function says(string $why): void { fwrite(STDERR, $why . "\n"); }

if ($mode === 'loop') {
    [$sent, $refused, $cut] = [0, 0, 0];
    while (!there($file)) {
        try {
            $ch = open($port);
        } catch (Exception $e) {
            $refused++;
            says($e->getMessage());
            usleep(100000);
            continue;
        }
        try {
            $ch->confirmSelect();
            $ch->setConfirmCallback(fn() => false, fn() => false);
            (new AMQPExchange($ch))->publish('x', QUEUE);
            $ch->waitForConfirm(60.0);
            $ch->getConnection()->disconnect();
            if ($sent++ === 0) file_put_contents($up, '.', FILE_APPEND | LOCK_EX);
        } catch (Exception $e) {
            $cut++;
            says($e->getMessage());
        }
        usleep(random_int(50000, 150000));
    }
    echo "loop $sent $refused $cut\n";
    exit($refused + $cut > 0 ? 1 : 0);
}

$got = 0;
try {
    $ch = open($port);
    $ch->setPrefetchCount(20);
    $q = queue($ch);
    $q->consume(null, AMQP_NOPARAM);
    $ch->getConnection()->setReadTimeout(1);
    file_put_contents($up, '.', FILE_APPEND | LOCK_EX);
    for ($quiet = false; !$quiet || !there($file);) {
        try {
            $q->consume(function (AMQPEnvelope $m, AMQPQueue $q) use (&$got) {
                $q->ack($m->getDeliveryTag());
                $got++;
            }, AMQP_JUST_CONSUME);
        } catch (AMQPQueueException $e) { // nothing came for a second
            if (!str_contains($e->getMessage(), 'timeout')) throw $e;
            $quiet = true;
        }
    }
    $ch->getConnection()->setReadTimeout(60);
    $ch->getConnection()->disconnect();
    echo "consume $got 0\n";
} catch (Exception $e) {
    says('a consumer after ' . $got . ': ' . get_class($e) . ' ' . $e->getMessage());
    echo "consume $got 1\n";
    exit(1);
}
