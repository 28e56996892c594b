<?php
// What php-amqplib hears of each login: PORT CAFILE ATTEMPTS.
require_once 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPSSLConnection;

[, $port, $ca, $file] = $argv;
$heard = [];
foreach (json_decode(file_get_contents($file)) as $a) {
    $tls = ['cafile' => $ca, 'verify_peer' => true];
    if ($a->cert) $tls += ['local_cert' => $a->cert, 'local_pk' => $a->key];
    $how = ['login_method' => $a->mechanism, 'login_response' => '', 'connection_timeout' => 30, 'read_write_timeout' => 60];
    try {
        $c = new AMQPSSLConnection('localhost', (int) $port, $a->user, $a->password, '/', $tls, $how);
        $c->channel();
        $c->close();
        $heard[] = '<nil>';
    } catch (Exception $e) {
        $heard[] = get_class($e) . ' ' . $e->getCode() . ' ' . $e->getMessage();
    }
}
echo json_encode($heard);
