// node's amqplib at work: OP PORT QUEUE N. Bodies are the numbers 0 to N-1; whatever is
// out of order or missing ends it with an error.
'use strict';
const amqp = require('amqplib');
const [op, port, queue] = process.argv.slice(2);
const n = Number(process.argv[5]);

function check(got, want) {
  if (String(got) !== String(want)) throw new Error(`got ${got}, want ${want}`);
}

const ca = process.env.AMQP_CACERT; // with a CA file the port speaks TLS
const connect = () => amqp.connect({protocol: ca ? 'amqps' : 'amqp', hostname: ca ? 'localhost' : '127.0.0.1', port: Number(port),
  username: 'guest', password: 'guest', vhost: '/'}, {noDelay: true, ...(ca && {ca: [require('fs').readFileSync(ca)]})});

// consume calls handle with each message until it says true, with errors in place of hangs.
function consume(ch, name, options, handle) {
  return new Promise((resolve, reject) => {
    ch.on('error', reject);
    ch.consume(name, (m) => {
      try {
        if (m === null) throw new Error('the consumer was cancelled');
        if (handle(m)) resolve();
      } catch (err) {
        reject(err);
      }
    }, options).catch(reject);
  });
}

async function main() {
  const ms = [];
  if (op === 'publish') {
    const conn = await connect();
    const ch = await conn.createConfirmChannel();
    ch.on('return', (m) => { throw new Error(`message ${m.content} came back`); });
    for (let i = 0; i < n; i++) {
      const more = ch.publish('', queue, Buffer.from(String(i)), {persistent: true, messageId: `m${i}`, mandatory: true});
      if (!more) await new Promise((go) => ch.once('drain', go));
    }
    await ch.waitForConfirms();
    await ch.close();
    await conn.close();
  } else if (op === 'get') {
    const conn = await connect();
    const ch = await conn.createChannel();
    let i = 0;
    for (let m; (m = await ch.get(queue)); i++) {
      check(m.content, i);
      ch.ack(m);
    }
    check(i, n);
    await ch.close();
    await conn.close();
  } else if (op === 'consume') {
    const conn = await connect();
    const ch = await conn.createChannel();
    await ch.prefetch(50);
    let i = 0;
    await consume(ch, queue, {consumerTag: 'one'}, (m) => {
      check(m.content, i);
      ch.ack(m);
      return ++i === n;
    });
    await ch.cancel('one');
    await ch.close();
    await conn.close();
  } else if (op === 'rpc' || op === 'direct') {
    const conn = await connect();
    const ch = await conn.createChannel();
    const replies = op === 'direct' ? 'amq.rabbitmq.reply-to' : (await ch.assertQueue('', {exclusive: true})).queue;
    let i = 0;
    const call = () => ch.publish('', queue, Buffer.from(`call ${i}`), {replyTo: replies, correlationId: `c${i}`});
    const answered = consume(ch, replies, {noAck: true}, (m) => {
      check(m.content, `answer to call ${i}`);
      check(m.properties.correlationId, `c${i}`);
      if (++i === n) return true;
      call();
    });
    call(); // the consume is on its way before it
    await answered;
    await conn.close();
  } else if (op === 'short') { // the way of a web request: one message per connection
    for (let i = 0; i < n; i++) {
      const t = process.hrtime.bigint();
      const conn = await connect();
      const ch = await conn.createChannel();
      ch.publish('', queue, Buffer.from(String(i)));
      await ch.close();
      await conn.close();
      ms.push(Number(process.hrtime.bigint() - t) / 1e6);
    }
  } else {
    throw new Error(`unknown: ${op}`);
  }
  console.log(JSON.stringify({n, ms}));
}

main().catch((err) => { console.error(err); process.exit(1); });
