<?php
// php-amqp in a loop that connects anew: PORT QUEUE. Publishes and gets, and prints "served"
// for each message that comes back, until it is killed. A refused login ends it, by its
// code: "Potential login failure" is what the library says of whatever ends before open-ok,
// at a balancer without a backend too.
[, $port, $queue] = $argv;
while (true) {
    try {
        $conn = new AMQPConnection(['host' => '127.0.0.1', 'port' => (int) $port, 'heartbeat' => 4,
            'connect_timeout' => 5, 'rpc_timeout' => 10]);
        $conn->connect();
        $ch = new AMQPChannel($conn);
        $q = new AMQPQueue($ch);
        $q->setName($queue);
        $q->setFlags(AMQP_DURABLE);
        $q->declareQueue();
        $ex = new AMQPExchange($ch);
        while (true) {
            $ex->publish('x', $queue);
            if ($m = $q->get()) {
                $q->ack($m->getDeliveryTag());
                echo "served\n";
            }
            usleep(250000);
        }
    } catch (AMQPException $e) {
        echo strtr($e->getMessage(), "\n", ' '), "\n";
        if ($e->getCode() === 403) {
            exit(1);
        }
    }
    sleep(1);
}
