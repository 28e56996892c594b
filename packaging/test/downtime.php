<?php
// downtime.php PORT FILE: connects, publishes and disconnects over and over until FILE is
// there, then says how long nobody could connect at a stretch, how many connects were
// refused, and fails if a client that was let in met an error or a message got lost.
// Once the first has done so it makes FILE.up.
[, $port, $file] = $argv;
$queue = 'downtime-' . getmypid();

function open(string $port): AMQPConnection {
    $c = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int)$port, 'login' => 'guest', 'password' => 'guest',
        'connect_timeout' => 60, 'read_timeout' => 60, 'write_timeout' => 60]);
    $c->connect();
    return $c;
}
function queue(AMQPConnection $c, string $name): AMQPQueue {
    $q = new AMQPQueue(new AMQPChannel($c));
    $q->setName($name);
    $q->declareQueue();
    return $q;
}
function there(string $file): bool {
    clearstatcache();
    return file_exists($file);
}

queue(open($port), $queue);
[$sent, $refused, $broken, $gap, $slow, $why] = [0, 0, 0, 0.0, 0.0, ''];
$last = microtime(true);
while (!there($file)) {
    $t = microtime(true);
    // A plain connect first: only a refused one counts as down.
    $s = @stream_socket_client("tcp://127.0.0.1:$port", $no, $text, 60);
    if ($s === false) {
        $refused++;
        usleep(2000);
        continue;
    }
    fclose($s);
    try {
        $c = open($port);
    } catch (AMQPConnectionException $e) { // the listener closed between the two
        $refused++;
        usleep(2000);
        continue;
    }
    try {
        (new AMQPExchange(new AMQPChannel($c)))->publish('x', $queue);
        $c->disconnect();
        if ($sent++ === 0) touch("$file.up");
    } catch (Exception $e) {
        $broken++;
        $why = $e->getMessage();
    }
    $now = microtime(true);
    $gap = max($gap, $now - $last);
    $slow = max($slow, $now - $t);
    $last = $now;
}
$q = queue(open($port), $queue);
for ($i = 0; $i < 200 && $q->declareQueue() < $sent; $i++) usleep(50000); // the last may be on their way
$got = $q->delete(); // how many there were: to get each takes longer than to publish it
printf("%d connections, %d refused, longest without one %.0f ms, slowest %.0f ms, %d broken, %d of %d messages there\n",
    $sent, $refused, 1000 * $gap, 1000 * $slow, $broken, $got, $sent);
if ($broken > 0) echo "broken: $why\n";
exit($broken > 0 || $got < $sent ? 1 : 0);
