<?php // HOST PORT CAFILE COUNT: one message per connection, prints microseconds
[, $host, $port, $ca, $count] = $argv;
$options = ['host' => $host, 'port' => (int)$port, 'login' => 'guest', 'password' => 'guest', 'vhost' => '/'];
if ($ca !== '') {
    $options += ['cacert' => $ca, 'verify' => true];
}
for ($i = 0; $i < $count; $i++) {
    $start = hrtime(true);
    $connection = new AMQPConnection($options);
    $connection->connect();
    $exchange = new AMQPExchange(new AMQPChannel($connection));
    $exchange->publish("message $i", 'bench');
    $connection->disconnect();
    printf("%d\n", (hrtime(true) - $start) / 1000);
}
