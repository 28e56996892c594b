<?php
// What php-amqp hears of each login: PORT CAFILE ATTEMPTS.
[, $port, $ca, $file] = $argv;
$heard = [];
foreach (json_decode(file_get_contents($file)) as $a) {
    $how = ['host' => 'localhost', 'port' => (int) $port, 'vhost' => '/', 'cacert' => $ca, 'verify' => true,
        'connect_timeout' => 30, 'rpc_timeout' => 30];
    if ($a->cert) $how += ['cert' => $a->cert, 'key' => $a->key];
    if ($a->mechanism === 'EXTERNAL') $how += ['sasl_method' => AMQP_SASL_METHOD_EXTERNAL];
    else $how += ['login' => $a->user, 'password' => $a->password];
    try {
        $c = new AMQPConnection($how);
        $c->connect();
        new AMQPChannel($c);
        $c->disconnect();
        $heard[] = '<nil>';
    } catch (Exception $e) {
        $heard[] = get_class($e) . ' ' . $e->getCode() . ' ' . $e->getMessage();
    }
}
echo json_encode($heard);
