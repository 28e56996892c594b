<?php // HOST PORT CAFILE COUNT: one message per connection, prints microseconds
require_once 'PhpAmqpLib/autoload.php';
[, $host, $port, $ca, $count] = $argv;
for ($i = 0; $i < $count; $i++) {
    $start = hrtime(true);
    if ($ca !== '') {
        $connection = new PhpAmqpLib\Connection\AMQPSSLConnection($host, (int)$port, 'guest', 'guest', '/', ['cafile' => $ca, 'verify_peer' => true]);
    } else {
        $connection = new PhpAmqpLib\Connection\AMQPStreamConnection($host, (int)$port, 'guest', 'guest', '/');
    }
    $channel = $connection->channel();
    $channel->basic_publish(new PhpAmqpLib\Message\AMQPMessage("message $i"), '', 'bench');
    $channel->close();
    $connection->close();
    printf("%d\n", (hrtime(true) - $start) / 1000);
}
