<?php
// AMQP clients for the testbed, as applications write them (php-amqp).
//   once PORT N        N times: connect, publish, disconnect; then one gets all N back
//   churn PORT FILE    the same publish over and over until FILE is there; no connect may fail
//   hold PORT FILE     one connection that publishes with confirms and gets, until FILE is there
//                      (both make FILE.up once the first message has gone its way)
//   stay PORT FILE     one connection, busy until it is closed; FILE is made once it is open; its last words are printed
[, $mode, $port, $arg] = $argv;
$queue = "testbed-$mode-" . getmypid();

function open(string $port): AMQPChannel {
    $c = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int)$port, 'login' => 'guest', 'password' => 'guest',
        'connect_timeout' => 30, 'read_timeout' => 30, 'write_timeout' => 30]);
    $c->connect();
    return new AMQPChannel($c);
}
function queue(AMQPChannel $ch, string $name): AMQPQueue {
    $q = new AMQPQueue($ch);
    $q->setName($name);
    $q->declareQueue();
    return $q;
}
function there(string $file): bool {
    clearstatcache();
    return file_exists($file);
}
function round_trip(AMQPChannel $ch, AMQPQueue $q, AMQPExchange $x, string $queue, int $n): void {
    $x->publish("message $n", $queue);
    $ch->waitForConfirm(10.0);
    $m = $q->get(AMQP_AUTOACK);
    if ($m === false || $m === null || $m->getBody() !== "message $n") throw new Exception("message $n did not come back");
}

$n = 0;
try {
    switch ($mode) {
    case 'once':
        queue(open($port), $queue);
        $took = 0.0;
        for (; $n < (int)$arg; $n++) {
            $t = microtime(true);
            $ch = open($port);
            (new AMQPExchange($ch))->publish("message $n", $queue);
            $ch->getConnection()->disconnect();
            $took += microtime(true) - $t;
        }
        $q = queue(open($port), $queue);
        for ($got = 0; $got < $n && $q->get(AMQP_AUTOACK); $got++);
        $q->delete();
        if ($got !== $n) throw new Exception("$n published, $got got");
        printf("%d connections, %d messages there and back, %.1f ms each\n", $n, $got, 1000 * $took / $n);
        break;
    case 'churn':
        queue(open($port), $queue);
        for (; !there($arg); $n++) {
            $ch = open($port);
            (new AMQPExchange($ch))->publish("message $n", $queue);
            $ch->getConnection()->disconnect();
            if ($n === 0) touch("$arg.up");
        }
        $q = queue(open($port), $queue);
        for ($i = 0; $i < 200 && $q->declareQueue() < $n; $i++) usleep(50000); // the last may be on their way
        $got = $q->delete(); // how many there were: to get each takes longer than to publish it
        if ($got !== $n) throw new Exception("$n published, $got there");
        echo "$n connections\n";
        break;
    case 'hold':
    case 'stay':
        $ch = open($port);
        $q = queue($ch, $queue);
        $x = new AMQPExchange($ch);
        $ch->confirmSelect();
        $ch->setConfirmCallback(fn() => false, fn() => false);
        if ($mode === 'stay') touch($arg);
        for (; $mode === 'stay' || !there($arg); $n++) {
            round_trip($ch, $q, $x, $queue, $n);
            if ($n === 0 && $mode === 'hold') touch("$arg.up");
            usleep(10000);
        }
        $q->delete();
        $ch->getConnection()->disconnect();
        echo "$n messages\n";
        break;
    }
} catch (Exception $e) {
    echo "after $n: ", get_class($e), ' ', $e->getCode(), ': ', $e->getMessage(), "\n";
    exit($mode === 'stay' ? 0 : 1);
}
